"""Curvature of the training loss: eigenvalues with bounds, trace and density with errors, outliers above the bulk."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.reading import Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.curvature import HUTCHINSON_1989, ROUNDING, identity_trace, one_by_one, probed_trace
from gnomon.instruments.curvature import ggn_trace as ggn_trace
from gnomon.instruments.curvature import influence as influence
from gnomon.instruments.curvature import inverse_hessian_product as inverse_hessian_product
from gnomon.instruments.curvature import layer_curvature as layer_curvature
from gnomon.numerics import dense
from gnomon.numerics.checkpoint import Checkpoint
from gnomon.numerics.class_means import by_class
from gnomon.numerics.density import spectral_density as lanczos_density
from gnomon.numerics.gram import gradient_covariance_eigenvalues as covariance_eigenvalues
from gnomon.numerics.gram import gradient_norms as norms_of_gradients
from gnomon.numerics.lanczos import Eigen, NotFiniteProduct, Product, basis_size, lanczos_eigenvalues
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.operators import PRODUCT, Hessian, loss_gradient

MEYER_2021 = Source("meyer2021")
GOODFELLOW_2015 = Source("goodfellow2015")
WU_SIMON_2000 = Source("wu2000")
GHORBANI_2019 = Source("ghorbani2019")
PAPYAN_2020 = Source("papyan2020")
COHEN_2021 = Source("cohen2021")
COHEN_2022 = Source("cohen2022")

GROUPS = 16
"""Groups of examples whose spread gives the error of a subsample."""
MOST_CLASSES = 20
"""Most classes for which outliers are counted: each needs an eigenvector."""
TOLERANCE = (1e-4, 1e-6)
"""Residual of an eigenvalue that has converged, relative to it, in single and in double precision: the eigenvalue's own error is about its square over the gap."""
WARM, WARM_TOLERANCE, WARM_NOISE = 8, 1e-3, 0.1
"""Along a training: products that an eigenvalue takes from the last eigenvector on, its relative residual, and the length of the random part of the start, by which a direction
that has overtaken is seen."""
STEPS = 24
"""Lanczos steps for one probe of the density."""


def _basis(subject: Subject, k: int = 1) -> int:
    """Vectors that Lanczos holds for k eigenvalues."""
    return basis_size(k, subject.dimension, subject.state[subject.trainable[0]].element_size()) + 10


def _product_cost(subject: Subject, products: float, vectors: float = 0.0) -> Cost:
    size = subject.state[subject.trainable[0]].element_size()
    return Cost(gradients=PRODUCT * products, bytes=int(vectors * subject.dimension * size) + operator_bytes(subject))


def _count(subject: Subject) -> int:
    """How many eigenpairs are shared: ten, or one more than the outliers that are predicted."""
    wanted = max(10, subject.classes) if subject.classes and subject.classes <= MOST_CLASSES else 10
    return min(wanted, subject.dimension)


def _checkpoint(subject: Subject, path: str | Path | None, what: str) -> Checkpoint | None:
    """The file in which a spectrum's state is kept, for this subject and these settings alone."""
    return None if path is None else Checkpoint(path, f"{subject.fingerprint()}/{subject.chunk}/{what}")


def _eigenpairs(subject: Subject, *, products: int, k: int, which: str, checkpoint: Checkpoint | None = None) -> Eigen:
    """Eigenpairs of the training Hessian, computed once for all that share them, and resumed where a call was interrupted; the starting vector is keyed by name, so that it matters not who asks first."""
    if products < 1:
        raise InvalidInput(f"products must be at least 1, not {products}.")

    def build() -> Eigen:
        try:
            return lanczos_eigenvalues(
                Hessian(subject), subject.dimension, k=k, which=which, rng=chance.generator(0, f"hessian/{which}"), like=subject.state[subject.trainable[0]],
                max_products=max(products, min(k + 2, subject.dimension)), tolerance=TOLERANCE[subject.dtype == torch.float64],
                interrupted=subject.once(f"interrupted/{which}/{k}/{products}", dict), checkpoint=checkpoint,
            )  # fmt: skip
        except NotFiniteProduct:
            norms_of_gradients(subject)  # names the example where one is to blame
            raise

    return subject.once(f"eigenpairs/{which}/{k}/{products}", build)


def _followed(subject: Subject, product: Product, name: str, *, products: int, rng: Generator) -> Eigen | None:
    """The leading eigenpair, found from the one that was kept at an earlier state, which it replaces; None where nothing is kept (each reading stands alone)."""
    if subject.kept is None:
        return None
    like, start = subject.state[subject.trainable[0]], subject.kept.get(name)
    if start is not None:
        noise = chance.normal(subject.dimension, rng=chance.child(rng, name), like=like)
        start = start + WARM_NOISE * noise / noise.norm()
    found = lanczos_eigenvalues(
        product, subject.dimension, k=1, rng=chance.generator(0, name), like=like, max_products=max(products, 3), tolerance=WARM_TOLERANCE, start=start,
    )  # fmt: skip
    subject.kept[name] = found.vectors[:, 0]
    return found


def _sampling(subject: Subject, vector: Tensor, value: float, known: Tensor, scale: Tensor | None = None) -> tuple[float, float, int]:
    """What having seen n of N examples does to an eigenvalue: its bias and its standard error, and how many groups they come from.

    First order: the spread of v' H_g v over groups of examples.  Second order: with dH = H_sample - H, sum_j (v_j' dH v)^2 / (lambda - lambda_j) raises the
    largest eigenvalue of a sample's Hessian; it is taken over what lies outside the eigenvectors found, whose own eigenvalues are near 0.  Both with the
    factor 1 - n/N.  The bias's own size is added to the error in quadrature.
    Shapes: vector (P,), known (P, k) orthonormal, scale (P,) for diag(scale) H diag(scale).
    """
    n, population, groups = len(subject.train), subject.train.population, min(GROUPS, len(subject.train))
    values, outside, shares = [], [], []
    for share, product in Hessian(subject).grouped(vector if scale is None else scale * vector, groups):
        along = product if scale is None else scale * product
        values.append(float(vector @ along))
        outside.append(float((along - known @ (known.T @ along)).double().square().sum()))
        shares.append(share)
    weight, factor = np.asarray(shares), len(shares) / max(len(shares) - 1, 1) * (1 - n / population)
    spread = float((weight**2 * (np.asarray(values) - weight @ np.asarray(values)) ** 2).sum()) * factor
    shift = float((weight**2 * np.asarray(outside)).sum()) * factor / value if value else 0.0
    bias = float(np.clip(shift, -abs(value), abs(value)))
    return bias, math.sqrt(spread + bias**2), len(shares)


def _with_sampling(subject: Subject, eigen: Eigen, k: int, *, name: str, which: str, source: Source) -> Reading:
    """A Reading of the first k eigenvalues: residual bounds, and the sampling error where the subject's examples are a subsample."""
    values, bounds = eigen.values[:k].double().cpu().numpy(), eigen.bounds[:k].double().cpu().numpy()
    axes = (Axis("eigenvalue", tuple(float(i + 1) for i in range(k))),)
    converged = [bool(flag) for flag in eigen.converged[:k]]
    assumes = ("the loss is that of eval mode",) + (
        () if all(converged) else (f"{converged.count(False)} of {k} had not converged when the products were used up; their bounds say how far",)
    )
    common: dict[str, Any] = {"unit": "loss / parameter²", "source": source, "axes": axes}
    if not subject.train.is_sample:
        return Reading(name, values, error=bounds, error_kind="bound", assumes=assumes, details={"converged": converged, "products": eigen.products}, **common)
    found = [_sampling(subject, eigen.vectors[:, i], float(values[i]), eigen.vectors) for i in range(k)]
    bias, error, groups = np.array([b for b, _, _ in found]), np.array([e for _, e, _ in found]), found[0][2]
    half = stats.t.ppf(0.975, groups - 1) * error + bounds
    seen = f"the {which} on {len(subject.train):,} examples out of {subject.train.population:,}, less what the {which} of a sample's Hessian exceeds the population's by on average"
    return Reading(
        name, values - bias, error=error, error_kind="sample", n=groups, interval=(values - bias - half, values - bias + half), assumes=(*assumes, seen),
        details={"bound": bounds, "converged": converged, "products": eigen.products, "of_sample": values}, **common,
    )  # fmt: skip


@instrument(
    topic="landscape", truth=dense.largest_eigenvalues, knob="products", smallest=32, largest=256, essential=True,
    cost=lambda subject, products: _product_cost(subject, products + 10, _basis(subject, _count(subject)) + 2 * _count(subject)),
)  # fmt: skip
def hessian_eigenvalues(subject: Subject, *, rng: Generator, k: int = 10, which: str = "largest", products: int = 128, checkpoint: str | Path | None = None) -> Reading:
    """Largest (or smallest) eigenvalues of the Hessian of the mean training loss, by thick-restart Lanczos with full reorthogonalisation.

    H v = lambda v;  |lambda_true - lambda| <= |H v - lambda v| for some eigenvalue lambda_true.

    `checkpoint` is a file in which the state is kept meanwhile: a process that was killed is followed by one that goes on from it, to the same bits.

    Shapes: value (k,), descending for `largest`, ascending for `smallest`.   Units: loss / parameter^2.
    Error: the residual bound, rounding included; on a subsample the standard error over groups of examples, the bound added to
    the interval, and the value corrected for the upward bias of a sample's eigenvalues (second-order perturbation; uncorrected in `details`).
    Assumes: eval mode.   Cost: at most `products` Hessian products (and k more on a subsample), about 3 gradients each; k + 20 vectors of memory, up to k + 70 where those fit into 256 MiB.
    Raises: InvalidInput for k above the number of parameters, an unknown `which`, or a checkpoint of something else; CannotWrite for a full disk.
    Source: Wu & Simon 2000.
    """
    if which not in ("largest", "smallest"):
        raise InvalidInput(f"which must be 'largest' or 'smallest', not {which!r}.")
    if not 1 <= k <= subject.dimension:
        raise InvalidInput(f"k must lie in 1 .. {subject.dimension}, the number of trainable parameters, not {k}.")
    shared = max(k, _count(subject)) if which == "largest" else k
    eigen = _eigenpairs(subject, products=products, k=shared, which=which, checkpoint=_checkpoint(subject, checkpoint, f"eigenvalues/{which}/{shared}"))
    return _with_sampling(subject, eigen, k, name="hessian_eigenvalues", which=which, source=WU_SIMON_2000)


@instrument(
    topic="landscape", truth=dense.sharpness, knob="products", smallest=32, largest=256, shares="hessian_eigenvalues",
    cost=lambda subject, products: _product_cost(subject, 1), warm=lambda subject, products: _product_cost(subject, min(products, WARM) + 1, _basis(subject)),
)  # fmt: skip
def sharpness(subject: Subject, *, rng: Generator, products: int = 128) -> Reading:
    """Sharpness: the largest eigenvalue of the Hessian of the mean training loss.

    Shapes: value ().   Units: loss / parameter^2.   Error: as `hessian_eigenvalues`.   Assumes: eval mode.
    Cost: shared with `hessian_eigenvalues`; in a training that is watched about 8 products, from the last eigenvector on, to a residual of 1e-3.
    Raises: InvalidInput for fewer than one product.
    Source: Cohen et al. 2021, section 2.
    """
    if products < 1:
        raise InvalidInput(f"products must be at least 1, not {products}.")
    eigen = _followed(subject, Hessian(subject), "hessian/followed", products=products, rng=rng) or _eigenpairs(subject, products=products, k=_count(subject), which="largest")
    reading = _with_sampling(subject, eigen, 1, name="sharpness", which="sharpness", source=COHEN_2021.at("section 2"))
    assert reading.interval is not None
    details = {key: value[0] if key in ("bound", "converged", "of_sample") else value for key, value in reading.details.items()}
    low, high = reading.interval
    return reading.replace(value=reading.value[0], error=reading.error[0], interval=(low[0], high[0]), axes=(), details=details)


@instrument(
    topic="landscape", needs=("labels",), truth=dense.hessian_outliers, knob="products", smallest=32, largest=256, shares="hessian_eigenvalues",
    cost=lambda subject, products: _product_cost(subject, products, _basis(subject)),
)  # fmt: skip
def hessian_outliers(subject: Subject, *, rng: Generator, products: int = 128) -> Reading:
    """How many eigenvalues of the Hessian lie above the largest one of the Hessian restricted to the complement of the class-mean gradients.

    With Q an orthonormal basis of the centred class means g_c - g of p_{i,c} grad loss_i, the count is of lambda_i(H) > lambda_max((1 - QQ') H (1 - QQ')).
    By Cauchy's interlacing it is at most classes - 1, and reaches it where the class means span the top of the spectrum.  Eigenvalues whose residual bounds reach across the edge are counted half and
    put into the error.

    Shapes: value ().   Units: eigenvalues.   Error: bound, half the number of undecided eigenvalues.
    Assumes: eval mode; the count is that of the Hessian on the examples seen.   Cost: `products` Hessian products beside those shared, and one gradient.
    Raises: OutOfScope for more than 20 classes, or a class without examples.
    Source: Papyan 2020.
    """
    if subject.classes is None or subject.classes > MOST_CLASSES:
        raise OutOfScope(f"outliers are counted for 2 to {MOST_CLASSES} classes; here are {subject.classes}")
    k = _count(subject)
    eigen = _eigenpairs(subject, products=products, k=k, which="largest")
    basis = class_mean_basis(subject)
    hessian, like = Hessian(subject), subject.state[subject.trainable[0]]

    def outside(v: Tensor) -> Tensor:
        return v - basis @ (basis.T @ v)

    edge = lanczos_eigenvalues(
        lambda v: outside(hessian(outside(v))), subject.dimension, k=1, which="largest", rng=chance.generator(0, "hessian/outside"), like=like, max_products=max(products, 3),
    )  # fmt: skip
    top, slack = float(edge.values[0]), float(edge.bounds[0])
    low, high = (eigen.values - eigen.bounds).tolist(), (eigen.values + eigen.bounds).tolist()
    surely, possibly = sum(value > top + slack for value in low), sum(value > top - slack for value in high)
    gap = abs(float(eigen.values[surely - 1]) - top) if surely else 0.0
    seen = (f"counted on {len(subject.train):,} of {subject.train.population:,} examples",) if subject.train.is_sample else ()
    return Reading(
        "hessian_outliers", (surely + possibly) / 2, "eigenvalues", error=(possibly - surely) / 2 or float(np.finfo(np.float64).eps), error_kind="bound", source=PAPYAN_2020, assumes=seen,
        details={"edge": top, "edge_bound": slack, "gap": gap, "classes": subject.classes, "above_edge_at_most": basis.shape[1]},
    )  # fmt: skip


def class_mean_basis(subject: Subject) -> Tensor:
    """Orthonormal basis of the class means g_c of p_{i,c} grad loss_i less their mean over all examples; p is the probability given to the true class.

    Shapes: (P, r), r at most classes - 1.   Cost: one gradient and one forward pass.
    Raises: OutOfScope where a class has no example, or targets are not one label an example.
    """
    shares, means = zip(*((share, _confident_gradient(part)) for share, part in by_class(subject)), strict=True)
    stacked = torch.stack(means, 1)
    share = torch.tensor(shares, dtype=stacked.dtype, device=stacked.device)
    left, size, _ = torch.linalg.svd(stacked - (stacked @ share)[:, None], full_matrices=False)
    most = len(means) - 1
    return left[:, :most][:, size[:most] > 1e-5 * size[0]]


def _confident_gradient(subject: Subject) -> Tensor:
    """The mean of p_i grad loss_i over examples of one class: the gradient of minus the mean of p_i."""

    def minus_probability(output: Tensor, targets: Tensor) -> Tensor:
        return -torch.softmax(output, -1).gather(-1, targets.reshape(-1, 1)).mean()

    loss = dataclasses.replace(subject.loss, function=minus_probability, reduction="mean", weight=lambda targets: float(len(targets)))
    return loss_gradient(dataclasses.replace(subject, loss=loss, _shared={}))[1]


@instrument(
    topic="landscape", needs=("adaptive", "optimizer"), truth=dense.preconditioned_sharpness, knob="products", smallest=32, largest=256,
    cost=lambda subject, products: _product_cost(subject, products, _basis(subject)), warm=lambda subject, products: _product_cost(subject, min(products, WARM) + 1, _basis(subject)),
)  # fmt: skip
def preconditioned_sharpness(subject: Subject, *, rng: Generator, products: int = 128) -> Reading:
    """Largest eigenvalue of P^(-1/2) H P^(-1/2), with P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps) from Adam's second moments v after t steps.

    Shapes: value ().   Units: 1 / lr.   Error: the residual bound; on a subsample the standard error over groups of examples.
    Assumes: eval mode.   Cost: at most `products` Hessian products; along a training as `sharpness`.
    Raises: OutOfScope where the optimizer is not Adam, or its state is not known.
    Source: Cohen et al. 2022, section 2.
    """
    training = subject.training
    if training.optimizer not in ("adam", "adamw"):
        raise OutOfScope("preconditioned sharpness is defined for Adam; the optimizer here is " + str(training.optimizer))
    if training.second_moment is None:
        raise OutOfScope("Adam's second moments are not known (--optimizer-state, or pass the torch optimizer itself)")
    if products < 1:
        raise InvalidInput(f"products must be at least 1, not {products}.")
    steps = training.steps or 10**6
    second = torch.cat([training.second_moment[key].reshape(-1) if key in training.second_moment else torch.zeros(subject.state[key].numel()) for key in subject.trainable])
    second = second.to(subject.device, subject.dtype)
    scale = ((1 - training.momentum**steps) * ((second / (1 - training.beta2**steps)).sqrt() + training.epsilon)).rsqrt()
    hessian, like = Hessian(subject), subject.state[subject.trainable[0]]

    def product(v: Tensor) -> Tensor:
        return scale * hessian(scale * v)

    eigen = _followed(subject, product, "hessian/preconditioned", products=products, rng=rng) or lanczos_eigenvalues(
        product, subject.dimension, k=1, which="largest", rng=chance.generator(0, "hessian/preconditioned"), like=like, max_products=max(products, 3),
    )  # fmt: skip
    value, bound = float(eigen.values[0]), float(eigen.bounds[0])
    common: dict[str, Any] = {"unit": "1 / lr", "source": COHEN_2022.at("section 2")}
    if not subject.train.is_sample:
        return Reading("preconditioned_sharpness", value, error=bound, error_kind="bound", **common)
    bias, error, groups = _sampling(subject, eigen.vectors[:, 0], value, eigen.vectors, scale)
    value, half = value - bias, stats.t.ppf(0.975, groups - 1) * error + bound
    return Reading("preconditioned_sharpness", value, error=error, error_kind="sample", n=groups, interval=(value - half, value + half), details={"bound": bound}, **common)


@instrument(topic="landscape", truth=dense.hessian_trace, knob="probes", smallest=16, largest=256, cost=lambda subject, probes: _product_cost(subject, probes, 4))
def hessian_trace(subject: Subject, *, rng: Generator, probes: int = 64, method: str = "hutchinson") -> Reading:
    """Trace of the Hessian of the mean training loss, by default by Hutchinson's estimator: the mean of v' H v over random signs v.

    `method`: `hutchinson`; `deflated`, the same outside the ten leading eigenvectors, whose part is exact; `hutch++`, the same outside a random sketch of `probes` / 3 products;
    `identity`, exactly by tr H = tr GGN, where every parameter enters one affine layer and what follows is piecewise linear.

    Shapes: value (); samples (probes,) on all examples.   Units: loss / parameter^2 (summed over parameters).
    Error: standard error over probes; on a subsample that over groups of examples is added in quadrature, with the finite-population factor.
    Assumes: eval mode.   Cost: `probes` Hessian products; `deflated` those of `hessian_eigenvalues` beside; `identity` a third of a gradient for each output.
    Raises: InvalidInput for fewer than two probes (six for `hutch++`) or an unknown method; OutOfScope for `identity` where it does not hold.
    Source: Hutchinson 1989; Meyer et al. 2021.
    """
    if method == "identity":
        return identity_trace(subject)
    if method not in ("hutchinson", "deflated", "hutch++"):
        raise unknown("method", method, ("hutchinson", "deflated", "hutch++", "identity"))
    known = _eigenpairs(subject, products=128, k=_count(subject), which="largest").vectors if method == "deflated" else None
    source = HUTCHINSON_1989 if method == "hutchinson" else MEYER_2021
    return probed_trace(subject, Hessian(subject), name="hessian_trace", probes=probes, rng=rng, source=source, method=method, known=known)


@instrument(topic="landscape", truth=dense.density, knob="probes", smallest=2, largest=32, cost=lambda subject, probes: _product_cost(subject, STEPS * probes, STEPS + 4))
def spectral_density(subject: Subject, *, rng: Generator, probes: int = 4, steps: int = STEPS, scale: str = "linear", checkpoint: str | Path | None = None) -> Reading:
    """Density of the Hessian's eigenvalues, smoothed by a Gaussian, by stochastic Lanczos quadrature.

    phi(t) = mean over probes of sum_m w_m N(t; theta_m, s^2), with Ritz values theta_m and weights w_m of a random start; s is the range over the steps.
    `checkpoint` is a file in which the state is kept meanwhile, as for `hessian_eigenvalues`.
    With `scale="log"` it is the density of ln(lambda) over the positive eigenvalues of the six decades below the largest.

    Shapes: value (points,).   Units: 1 / eigenvalue; with `log` a share for each factor e.
    Error: standard error of the mean over probes, from tr f^2 by the same quadrature; the band is that of a chi-square of the same mean and variance.   Assumes: eval mode; the density is that of the Hessian on the examples seen.
    Cost: `steps` x `probes` Hessian products.   Raises: InvalidInput for fewer than two probes, or an unknown scale.
    Source: Ghorbani et al. 2019, section 3.
    """
    if probes < 2:
        raise InvalidInput(f"A band needs at least two probes, not {probes}.")
    if scale not in ("linear", "log"):
        raise unknown("scale", scale, ("linear", "log"))
    found = lanczos_density(
        Hessian(subject), subject.dimension, rng=rng, probes=probes, steps=min(steps, subject.dimension), like=subject.state[subject.trainable[0]], points=160,
        checkpoint=_checkpoint(subject, checkpoint, f"density/{steps}/{rng.initial_seed()}"),
    )  # fmt: skip
    seen = (f"on {len(subject.train):,} of {subject.train.population:,} examples",) if subject.train.is_sample else ()
    logarithmic = scale == "log"
    if logarithmic:
        found = found.logarithmic()
    values = found.grid.exp() if logarithmic else found.grid
    axis = Axis("eigenvalue", tuple(values.tolist()), "loss / parameter²", "log" if logarithmic else "linear")
    return Reading(
        "spectral_density", found.samples.mean(0), "" if logarithmic else "1 / eigenvalue", error=found.error, error_kind="probe", n=probes, interval=found.band(), source=GHORBANI_2019, axes=(axis,),
        assumes=seen, details={"width": found.width, "share": float((found.weights).sum(1).mean())} if logarithmic else {"width": found.width},
    )  # fmt: skip


def gradient_norms(subject: Subject, *, rng: Generator | None = None, split: str = "train") -> Reading:
    """The norm of each example's own gradient, without making the gradients.

    g_i = N (w_i / W) grad loss_i, so that their mean is the gradient of the loss; |g_i|^2 from the layers' inputs and the gradients of their outputs.

    Shapes: value (N,).   Units: loss / parameter.   Error: rounding.   `skipped` names the parameters that no known layer holds: their gradients are taken one example at a time.
    Assumes: eval mode.   Cost: about a gradient.   Raises: OutOfScope without test data for `split="test"`; InvalidInput that names the example whose gradient is not finite.
    Source: Goodfellow 2015.
    """
    norms = norms_of_gradients(subject, split=split).numpy()
    axis = Axis("example", tuple(float(i) for i in range(len(norms))))
    bound = ROUNDING * torch.finfo(subject.dtype).eps * norms
    return Reading("gradient_norms", norms, "loss / parameter", error=bound, error_kind="bound", axes=(axis,), source=GOODFELLOW_2015, skipped=one_by_one(subject))


def gradient_covariance_eigenvalues(subject: Subject, *, rng: Generator | None = None, split: str = "train") -> Reading:
    """All eigenvalues of the covariance of per-example gradients that can differ from 0, by their Gram matrix.

    C = (1/N) sum_i (g_i - g) (g_i - g)^T, centred and divided by N; the N eigenvalues of the centred Gram matrix over N (one of them is 0), and P - N zeros beside where P > N.

    Shapes: value (N,), descending.   Units: loss^2 / parameter^2.   Error: rounding of the Gram matrix.   `skipped` as in `gradient_norms`.
    Assumes: eval mode.   Cost: one gradient, N^2 inner products and N^3; 16 N^2 bytes.   Raises: as `gradient_norms`.
    Source: Papyan 2020 (the gradients' second moment); Goodfellow 2015.
    """
    values, bound = covariance_eigenvalues(subject, split=split)
    axis = Axis("eigenvalue", tuple(float(i + 1) for i in range(len(values))))
    return Reading(
        "gradient_covariance_eigenvalues", values, "loss² / parameter²", error=bound, error_kind="bound", axes=(axis,), source=PAPYAN_2020, skipped=one_by_one(subject),
        assumes=("centred, divided by N", "the loss is that of eval mode"),
    )  # fmt: skip
