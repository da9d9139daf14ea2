"""Moments over ensembles of networks at initialisation, from their pre-activations and their tangent kernels, with the error bar that their number leaves.

Arrays have one entry a network, first.  Errors are standard errors over networks, by leaving out one at a time (Quenouille 1956; Tukey 1958).  Products of four factors have long tails, the
longer the larger depth/width: their 95 % intervals are lopsided, and open towards a tail that so many networks do not reach to its end (`tailed_interval`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.numerics.statistics import tailed_interval

FEWEST = 30
"""Fewest networks of a block: the bias of a ratio of moments falls with their number squared, once it is corrected."""

BLOCK = 256
"""Networks whose products are formed at once."""

Each = Float[Tensor, "members *shape"]


def over_networks(name: str, values: Each, unit: str = "") -> Reading:
    """The mean of a quantity over networks.

    Shapes: (members, ...) -> value (...).   Units: `unit`.   Error: standard error over networks.   Assumes: networks are drawn independently.   Cost: none.
    Raises: InvalidInput for fewer than two.
    """
    return Reading.of_samples(name, values.double(), unit=unit, error_kind="seed").replace(samples=None)


def preactivation_variance(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The mean of z^2 over the units of a layer and over networks.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error, Assumes, Raises: as `over_networks`.   Cost: none.
    """
    return over_networks("preactivation_variance", preactivations.double().square().mean(2).T)


def norm_fluctuation(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The relative variance over networks of the squared norm of a layer's pre-activations.

    E |z|^4 / (E |z|^2)^2 - 1, by the jackknife over networks, whose bias is of second order in 1/members.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error: standard error over networks.
    Assumes: as `over_networks`.   Cost: none.   Raises: InvalidInput for fewer than FEWEST networks.   Source: Quenouille 1956 (jackknife).
    """
    square = preactivations.double().square().mean(-1)
    return _jackknife("norm_fluctuation", _excess, square.square().T, square.T)


def four_point_vertex(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The relative covariance over networks of the squares of two different pre-activations of a layer, V / (n K^2).

    E z_i^2 z_j^2 / (E z_i^2)^2 - 1 with i /= j, averaged over all pairs, by the jackknife over networks, whose bias is of second order in 1/members.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error: standard error over networks.
    Assumes: the units of a layer are exchangeable.   Cost: none.   Raises: InvalidInput for fewer than FEWEST networks, or layers of one unit.
    Source: Roberts, Yaida & Hanin 2022, eq. (4.43) (arXiv v2) (V, in the second layer); Quenouille 1956 (jackknife).
    """
    width = preactivations.shape[-1]
    if width < 2:
        raise InvalidInput("A pair of units is needed, and the layers have one.")
    square = preactivations.double().square()
    total = square.sum(-1)
    pairs = (total.square() - square.square().sum(-1)) / (width * (width - 1))
    return _jackknife("four_point_vertex", _excess, pairs.T, total.T / width)


def ntk_fluctuation(kernel: Float[Tensor, "members *pairs"]) -> Reading:
    """The relative variance over networks of a tangent kernel, of one unit, element by element.

    E Theta^2 / (E Theta)^2 - 1

    Shapes: (members, ...) -> value (...).   Units: none.   Error, Assumes, Raises, Source: as `norm_fluctuation`.   Cost: none.
    """
    kernel = kernel.double()
    return _jackknife("ntk_fluctuation", _excess, kernel.square(), kernel)


def ntk_covariances(outputs: Float[Tensor, "members a n"], kernel: Float[Tensor, "members pairs n n"]) -> dict[str, Reading]:
    """The covariances over networks of tangent kernels and outputs of different units i /= j of a layer, times its width: A, B, D and F.

    A = n Cov(Theta_ii;ab, Theta_jj;cd),  B = n E Theta_ij;ab Theta_ij;cd,  D = n Cov(z_ia z_ib, Theta_jj;cd),  F = n E z_ia z_jb Theta_ij;cd, over all pairs of units.

    Shapes: outputs (members, examples, units), kernel (members, pairs of examples a <= b, units, units) -> values (a, b, c, d).
    Units: those of the kernel and the outputs.   Error: standard error over networks.   Assumes: the units of a layer are exchangeable.
    Cost: members * (pairs units)^2 products.   Raises: InvalidInput for fewer than FEWEST networks, or layers of one unit.
    Source: Roberts, Yaida & Hanin 2022, chapter 8 (their A_(ab)(cd), B_acbd, D_abcd and F_acbd).
    """
    products = [_of_pairs(z.double(), theta.double()) for z, theta in zip(outputs.split(BLOCK), kernel.split(BLOCK), strict=True)]
    mean, square, a, b, d, f = (torch.cat(part) for part in zip(*products, strict=True))
    n = outputs.shape[-1]
    return {
        "A": _jackknife("A", lambda both, one: n * (both - one[..., :, :, None, None] * one[..., None, None, :, :]), a, mean),
        "B": _jackknife("B", lambda one: n * one, b),
        "D": _jackknife("D", lambda both, one, two: n * (both - one[..., :, :, None, None] * two[..., None, None, :, :]), d, square, mean),
        "F": _jackknife("F", lambda one: n * one, f),
    }


def first_order_tensors(
    *, width: int, outputs: Float[Tensor, "members a k"], ntk: Tensor, ntk_along: Tensor, second_along: Tensor, second_mixed: Tensor, third: Tensor, joined: Tensor
) -> dict[str, Reading]:  # fmt: skip
    """What an ensemble says of all tensors of order 1/n: the means of z z and of the tangent kernel ("kernel", "ntk"), and n times the moments V, A, B, D, F, P, Q, R, S, T, U.

    V = n Cov(z_ia z_ib, z_jc z_jd),  A = n Cov(H_ii;ab, H_jj;cd),  B_abcd = n E H_ij;ac H_ij;bd,  D = n Cov(z_ia z_ib, H_jj;cd),  F_acbd = n E z_ia z_jb H_ij;cd,  P = n E dH_ijj;abc z_id,
    Q = n E dH_iij;abc z_jd,  R = n E ddI_iijj;abcd,  S = n E ddII_iijj;abcd,  T_acdb = n E ddII_ijij;abcd,  U_adbc = n E ddII_ijji;abcd, with i /= j; a sum over outputs l of z_l f_l is what f gives
    along the vector of them, which leaves less noise than one of them.

    Shapes: members first, as `gnomon.models.differentials.Differentials` has them (its fields are the arguments) -> values (a, b) and (a, b, c, d).   Units: those of the moments.
    Error: standard error over networks.   Assumes: the outputs are exchangeable.   Cost: members * examples^4 * units.
    Raises: InvalidInput for fewer than FEWEST networks.   Source: Roberts, Yaida & Hanin 2022, chapters 4, 8 and 11 and the epilogue.
    """
    z, h = outputs.double(), ntk.double()
    n, others = width, z.shape[-1] - 1
    squares = torch.einsum("mai,mbi->mabi", z, z)
    total = squares.sum(-1)
    pairs = (torch.einsum("mab,mcd->mabcd", total, total) - torch.einsum("mabi,mcdi->mabcd", squares, squares)) / (others * (others + 1))
    both = torch.einsum("mab,mcd->mabcd", h[:, 0, 0], h[:, 1, 1])
    own = torch.einsum("mab,mcd->mabcd", squares[..., 1:].mean(-1), h[:, 0, 0])

    def covariance(moment: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return n * (moment - one[..., :, :, None, None] * two[..., None, None, :, :])

    kernel, mean = total / (others + 1), (h[:, 0, 0] + h[:, 1, 1]) / 2
    joined = joined.double()
    means = {
        "B": torch.einsum("mac,mbd->mabcd", h[:, 0, 1], h[:, 0, 1]),
        "F": torch.einsum("ma,mbcd->macbd", z[..., 0], ntk_along.double()) / others,
        "P": second_along / others,
        "Q": second_mixed / others,
        "R": third,
        "S": (joined[:, 0, 0, 1, 1] + joined[:, 1, 1, 0, 0]) / 2,
        "T": torch.einsum("mabcd->macdb", joined[:, 0, 1, 0, 1] + joined[:, 1, 0, 1, 0]) / 2,
        "U": torch.einsum("mabcd->madbc", joined[:, 0, 1, 1, 0] + joined[:, 1, 0, 0, 1]) / 2,
    }
    return {
        "kernel": over_networks("kernel", kernel),
        "ntk": over_networks("ntk", mean),
        "V": _jackknife("V", lambda moment, one: covariance(moment, one, one), pairs, kernel),
        "A": _jackknife("A", covariance, (both + both.permute(0, 3, 4, 1, 2)) / 2, h[:, 0, 0], h[:, 1, 1]),
        "D": _jackknife("D", covariance, own, squares[..., 1:].mean(-1), h[:, 0, 0]),
        **{name: _jackknife(name, lambda one: n * one, value.double()) for name, value in means.items()},
    }


def _of_pairs(z: Float[Tensor, "members a n"], theta: Float[Tensor, "members pairs n n"]) -> Sequence[Tensor]:
    """Each network's mean of Theta_ii and of z_i z_i, and of the four products over i /= j.   Shapes: -> (members, a, b) twice, (members, a, b, c, d) four times."""
    count, n = z.shape[1:]
    if n < 2:
        raise InvalidInput("A pair of units is needed, and the layers have one.")
    whole = theta.new_empty(len(z), count, count, n, n)
    one, two = torch.triu_indices(count, count)
    whole[:, one, two], whole[:, two, one] = theta, theta.mT
    own, squares, pairs = whole.diagonal(dim1=-2, dim2=-1), z[:, :, None] * z[:, None, :], n * (n - 1)
    a = torch.einsum("mab,mcd->mabcd", own.sum(-1), own.sum(-1)) - torch.einsum("mabi,mcdi->mabcd", own, own)
    b = torch.einsum("mabij,mcdij->mabcd", whole, whole) - torch.einsum("mabi,mcdi->mabcd", own, own)
    d = torch.einsum("mab,mcd->mabcd", squares.sum(-1), own.sum(-1)) - torch.einsum("mabi,mcdi->mabcd", squares, own)
    f = torch.einsum("mai,mcdij,mbj->mabcd", z, whole, z) - torch.einsum("mabi,mcdi->mabcd", squares, own)
    return own.mean(-1), squares.mean(-1), a / pairs, b / pairs, d / pairs, f / pairs


def _excess(above: Tensor, below: Tensor) -> Tensor:
    return above / below**2 - 1


def _jackknife(name: str, function: Callable[..., Tensor], *each: Each) -> Reading:
    """A function of means over networks, its bias of first order taken off, with its standard error, by leaving out one network at a time."""
    members = len(each[0])
    if members < FEWEST:
        raise InvalidInput(f"A ratio of moments needs a block of at least {FEWEST} networks, not {members}.")
    means = [part.mean(0, keepdim=True) for part in each]
    whole = function(*means)[0]
    left = function(*((members * mean - part) / (members - 1) for mean, part in zip(means, each, strict=True)))
    each_one = members * whole - (members - 1) * left
    error = each_one.std(0) / members**0.5
    return Reading(name, each_one.mean(0), "", error=error, error_kind="seed", n=members, interval=tailed_interval(each_one))
