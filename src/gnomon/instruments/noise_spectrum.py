"""Where gradient noise lies: its spectrum as the Hessian sees it, its alignment with the sharpest directions, and the weight of its tails beside a Gaussian control."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.curvature import one_by_one
from gnomon.instruments.dynamics import ROUNDING, summed_gradient
from gnomon.numerics import dense
from gnomon.numerics.density import quadrature
from gnomon.numerics.fisher import gradient_products
from gnomon.numerics.gram import gradient_norms
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.operators import PRODUCT, Hessian, loss_gradient

MANDT_2017 = Source("mandt2017")
THOMAS_2020 = Source("thomas2020")
SIMSEKLI_2019 = Source("simsekli2019")
FEWEST_PROBES = 2
NODES = 8
"""Lanczos steps from each probe: the quadrature is exact for polynomials of the Hessian of degree 15."""
GROUPS = 8
"""Groups of batches whose spread is the error of a tail index."""
Indices = np.ndarray[Any, np.dtype[np.int64]]
FEWEST_DRAWS = 64
SMALL = 2**22
"""Numbers in the gradients of all examples up to which they are held, to make those of batches from."""
COORDINATES = 4096
"""Coordinates that tails are looked at in, at most."""


def _probe(subject: Subject, index: int) -> tuple[Float[Tensor, "P"], float]:
    """v with E v v^T = Sigma over random halves, and what its rounding is relative to.

    v = (g_A - g_B) / sqrt(1/a + 1/b) with the means over two halves of a and b examples: exactly, with divisor N - 1.
    """
    n = len(subject.train)
    order = chance.permutation(n, rng=chance.generator(0, "halves", index))
    scale = n / subject.total_weight() if subject.loss.reduction == "mean" else float(n)
    halves = [(len(part), summed_gradient(subject, subject.train.select(part)).double() * scale) for part in (order[: n // 2], order[n // 2 :])]
    (a, one), (b, two) = halves
    spread = math.sqrt(1 / a + 1 / b)
    return (one / a - two / b) / spread, (float((one / a).norm()) + float((two / b).norm())) / spread


def exact_noise_curvature(subject: Subject) -> Array:
    """The same two numbers from the Hessian as a matrix, along the same probes."""
    hessian = dense.hessian(subject).double().cpu()
    probes = [_probe(subject, index)[0].cpu() for index in range(FEWEST_PROBES)]
    return np.mean([[float(v @ v), float(v @ hessian @ v)] for v in probes], axis=0)


def _curvature_cost(subject: Subject, probes: int) -> Cost:
    size = subject.state[subject.trainable[0]].element_size()
    return Cost(gradients=probes * (1 + NODES * PRODUCT), bytes=(NODES + 4) * subject.dimension * size + operator_bytes(subject))


@instrument(topic="dynamics", truth=exact_noise_curvature, knob="probes", smallest=FEWEST_PROBES, largest=32, cost=_curvature_cost)
def noise_curvature(subject: Subject, *, rng: Generator, probes: int = 8) -> Reading:
    """Size of gradient noise and the curvature along it, tr Sigma and tr(H Sigma), with the Hessian's spectrum weighed by the noise.

    v = (g_A - g_B) / sqrt(1/a + 1/b) for random halves A and B of the examples has E v v^T = Sigma (divisor N - 1), so that
    tr(f(H) Sigma) = E v^T f(H) v = E |v|^2 sum_m w_m f(h_m), by Lanczos from v.

    Shapes: value (2,); `details` has `nodes` h and `weights` |v|^2 w, both (probes, at most 8), and the two numbers of each probe.
    Units: loss^2 / parameter^2, loss^3 / parameter^4.
    Error: bound, rounding alone: the halves are keyed by their number, not by `rng`, so that what theory makes of them speaks of the same noise; the spread
    over probes stands in `details`.
    Assumes: eval mode; the examples at hand are the data.   Cost: a gradient and 8 Hessian products a probe.
    Raises: InvalidInput for fewer than 2 probes; OutOfScope for fewer than 4 examples or where every gradient is the same.
    Source: Golub & Welsch 1969 (the quadrature); Mandt et al. 2017 (what tr(H Sigma) says of stationary noise).
    """
    if probes < FEWEST_PROBES:
        raise InvalidInput(f"probes must be at least {FEWEST_PROBES}, not {probes}: their spread is the error of what is predicted from them.")
    n = len(subject.train)
    if n < 4:
        raise OutOfScope(f"two halves with noise need at least 4 examples; here are {n}")
    hessian, like = Hessian(subject), subject.state[subject.trainable[0]]
    steps = min(NODES, subject.dimension)
    nodes, weights, rows, scales = np.zeros((probes, steps)), np.zeros((probes, steps)), np.zeros((probes, 2)), np.zeros((probes, 2))
    for index in range(probes):
        v, scale = _probe(subject, index)
        square = float(v @ v)
        if not square > (ROUNDING * torch.finfo(subject.dtype).eps * scale) ** 2:
            raise OutOfScope("every example has the same gradient: there is no noise")
        h, w = quadrature(hessian, subject.dimension, steps=steps, rng=chance.generator(0, "halves", index), like=like, start=v.to(like.dtype))
        nodes[index, : len(h)], weights[index, : len(h)] = h.numpy(), square * w.numpy()
        rows[index] = square, float(weights[index] @ nodes[index])
        scales[index] = scale * (scale + math.sqrt(square)), scale * (scale + math.sqrt(square)) * float(h.abs().max())
    error = np.maximum(ROUNDING * torch.finfo(subject.dtype).eps * scales.max(0), 1e-300)
    return Reading(
        "noise_curvature", rows.mean(0), "loss²/parameter², loss³/parameter⁴", error=error, error_kind="bound", axes=(Axis("trace", ("tr Σ", "tr HΣ")),),
        source=MANDT_2017, assumes=(f"the noise is seen along {probes} random directions",), details={"nodes": nodes, "weights": weights, "probes": rows, "examples": n},
    )  # fmt: skip


def noise_alignment(subject: Subject, *, rng: Generator, k: int = 10, products: int = 128) -> Reading:
    """Variance of per-example gradients along the k sharpest directions of the loss, u_i^T Sigma u_i, beside their curvature.

    Shapes: value (k,), sharpest first; `details` has the `eigenvalues`, the `share` of tr Sigma that lies in them, the `share_expected` k / P of noise that knows nothing
    of the curvature, and `ratio` u^T Sigma u / h, constant where Sigma is proportional to H.
    Units: loss^2 / parameter^2.   Error: by the residual of each eigenvector: |Sigma|_2 at most tr Sigma, 2 tr Sigma |residual| / gap to the next eigenvalue.
    Assumes: eval mode; divisor N - 1.   Cost: at most `products` Hessian products, two forward passes a direction, and a gradient.   Raises: as `hessian_eigenvalues`.
    Source: Thomas et al. 2020 (noise and curvature side by side).
    """
    k = min(k, subject.dimension)
    like = subject.state[subject.trainable[0]]
    found = lanczos_eigenvalues(Hessian(subject), subject.dimension, k=k, rng=rng, like=like, max_products=max(products, k + 1))
    values, n = found.values.numpy(), len(subject.train)
    along = np.stack([gradient_products(subject, found.vectors[:, i]).numpy() for i in range(k)])
    variances = along.var(axis=1, ddof=1)
    mean = loss_gradient(subject)[1].double()
    total = (float((gradient_norms(subject) ** 2).sum()) - n * float(mean @ mean)) / (n - 1)
    gaps = np.abs(np.diff(values, append=2 * values[-1] - values[-2] if k > 1 else 0.0))
    gaps = np.minimum(gaps, np.concatenate([[np.inf], gaps[:-1]]))
    residuals = np.asarray(found.residuals)[:k]
    error = np.minimum(2 * total * residuals / np.maximum(gaps, 1e-300), total)
    return Reading(
        "noise_alignment", variances, "loss² / parameter²", error=error, error_kind="bound", axes=(Axis("eigenvalue", tuple(float(i + 1) for i in range(k))),), source=THOMAS_2020,
        skipped=one_by_one(subject), assumes=("the loss is that of eval mode",),
        details={"eigenvalues": values, "share": float(variances.sum()) / total, "share_expected": k / subject.dimension, "ratio": variances / values, "trace": total},
    )  # fmt: skip


def tail_index_estimate(samples: Float64[Array, "n *columns"], block: int) -> Float64[Array, "*columns"]:
    """1 / alpha of a symmetric stable law, by the growth of sums of `block` samples: (E log |Y| - E log |X|) / log(block), Y such sums.

    Shapes: (n, ...) -> (...), one for each column.   Units: none.   Assumes: samples along the first dimension are independent, of one law, centred.
    Raises: InvalidInput for a block below 2, or fewer samples than two blocks.   Source: Mohammadi et al. 2015; Simsekli et al. 2019.
    """
    blocks = len(samples) // block if block > 1 else 0
    if blocks < 2:
        raise InvalidInput(f"The tail index compares samples with sums of at least 2 of them, in at least 2 blocks; {len(samples)} samples in blocks of {block} came.")
    x = samples[: blocks * block]
    sums = x.reshape(blocks, block, *x.shape[1:]).sum(1)
    log = lambda a: np.log(np.maximum(np.abs(a), 1e-300))  # noqa: E731
    return (log(sums).mean(0) - log(x).mean(0)) / math.log(block)


def hill_estimate(samples: Float64[Array, "n"], share: float = 0.01) -> float:
    """alpha of a power-law tail by the largest `share` of the samples' sizes: k / sum_i log(x_i / x_(k+1)).

    Shapes: (n,) -> ().   Units: none.   Error: alpha / sqrt(k) where the tail is a power law.   Raises: InvalidInput where fewer than 2 samples are in the tail.
    Source: Hill 1975.
    """
    sizes = np.sort(np.abs(np.asarray(samples, dtype=np.float64)))[::-1]
    k = int(share * len(sizes))
    if not 2 <= k < len(sizes):
        raise InvalidInput(f"Hill's estimator needs at least 2 samples in the tail: {share:g} of {len(sizes)} are {k}.")
    return float(k / np.log(sizes[:k] / sizes[k]).sum())


def tail_index(subject: Subject, *, rng: Generator, batch_size: int, replacement: bool, draws: int = 256) -> Reading:
    """Tail index of gradient noise, pooled over coordinates and in each of them, beside the same of Gaussian noise with the same scale in each coordinate.

    Noise of `draws` batches less their mean.  Pooled, all coordinates are taken as samples of one law, and noise of unequal scales then looks heavy-tailed though it
    be Gaussian in each: an alpha below 2 says nothing unless it lies below the control's.

    Shapes: value (4,): pooled, its control, per direction (by the mean of 1 / alpha), its control.   Units: none.
    Error: standard error by the spread over eighths of the batches; `details` has Hill's estimates of the pooled noise and of its control.
    Assumes: eval mode.  `replacement` says how a batch is drawn and has no default.   Cost: `draws` gradients of one batch; `draws` x 4,096 numbers.
    Raises: InvalidInput for fewer than 64 draws or a batch larger than the data without replacement; OutOfScope where there is no noise.
    Source: Simsekli et al. 2019 (pooled); Mohammadi et al. 2015 (the estimator); Hill 1975; the control is gnomon's.
    """
    n = len(subject.train)
    if draws < FEWEST_DRAWS:
        raise InvalidInput(f"draws must be at least {FEWEST_DRAWS}, not {draws}: tails need samples.")
    if not replacement and not 1 <= batch_size < n:
        raise InvalidInput(f"A batch without replacement must hold fewer than the {n:,} examples, not {batch_size}; with all of them there is no noise.")
    draws -= draws % FEWEST_DRAWS
    some = chance.permutation(subject.dimension, rng=chance.child(rng, "coordinates"))[:COORDINATES].to(subject.device)
    batches = [
        chance.integers(n, batch_size, rng=stream) if replacement else chance.permutation(n, rng=stream)[:batch_size]
        for stream in (chance.child(rng, "batch", draw) for draw in range(draws))
    ]
    noise = _batch_gradients(subject, batches, some)
    size = float(np.abs(noise).max())
    noise = noise - noise.mean(0)
    scales = noise.std(0, ddof=1)
    # a coordinate that hardly any batch moves (a dead unit) has no noise to look at but rounding
    alive = scales > max(1e-12 * scales.max(), ROUNDING * torch.finfo(subject.dtype).eps * size)
    if not alive.any():
        raise OutOfScope("no coordinate of the gradient differs between batches: there is no noise")
    noise, scales = noise[:, alive], scales[alive]
    control = chance.normal(*noise.shape, rng=chance.child(rng, "control")).numpy() * scales
    mix = chance.permutation(noise[::GROUPS].size, rng=chance.child(rng, "pooled")).numpy()
    inverse = np.stack([found for rows in (noise, control) for found in _inverse_indices(rows, mix)])[[0, 2, 1, 3]]
    value = 1 / inverse.mean(1)
    error = value**2 * inverse.std(1, ddof=1) / math.sqrt(GROUPS)
    names = ("pooled", "pooled, Gaussian control", "per direction", "per direction, Gaussian control")
    return Reading(
        "tail_index", value, "", error=error, error_kind="sample", n=GROUPS, axes=(Axis("estimate", names),), source=SIMSEKLI_2019,
        assumes=(f"batches of {batch_size:,} are drawn {'with' if replacement else 'without'} replacement", f"{noise.shape[1]:,} of {subject.dimension:,} coordinates"),
        details={"hill": hill_estimate(noise.ravel()), "hill_control": hill_estimate(control.ravel()), "draws": len(noise), "batch": batch_size},
    )  # fmt: skip


def _batch_gradients(subject: Subject, batches: list[Tensor], some: Tensor) -> Float64[Array, "draws some"]:
    """The gradient of each batch in some coordinates: from those of all examples where they are few and small, which are then taken once."""
    n, size = len(subject.train), len(batches[0])
    if n > 2 * len(batches) or n * subject.dimension > SMALL:
        return torch.stack([summed_gradient(subject, subject.train.select(chosen))[some].double().cpu() / size for chosen in batches]).numpy()
    examples = subject.once("noise-tails/examples", lambda: torch.stack([summed_gradient(subject, subject.train.select(torch.tensor([i]))).double().cpu() for i in range(n)]))
    seen = examples[:, some.cpu()]
    return torch.stack([seen[chosen].mean(0) for chosen in batches]).numpy()


def expected_tails(subject: Subject) -> Array:
    """The mean of the estimates from the fewest batches, over 256 sets of them."""
    draws = (tail_index(subject, rng=chance.generator(0, "truth", index), batch_size=batch_in_use(subject), replacement=False, draws=FEWEST_DRAWS) for index in range(256))
    return np.mean([reading.value for reading in draws], axis=0)


def batch_in_use(subject: Subject) -> int:
    """The batch size that the subject was trained with.  Raises: OutOfScope where it is not known, or holds all examples at hand."""
    size, n = subject.training.batch_size, len(subject.train)
    if size is None:
        raise OutOfScope("the batch size is not known (--batch-size)")
    if size >= n:
        raise OutOfScope(f"a batch of {size:,} holds all {n:,} examples at hand: it has no noise")
    return size


def _tails_cost(subject: Subject, draws: int) -> Cost:
    n = len(subject.train)
    return Cost(gradients=draws * min(subject.training.batch_size or 1, n) / n, bytes=8 * draws * min(COORDINATES, subject.dimension) * 8)


@instrument(topic="dynamics", needs=("optimizer",), truth=expected_tails, knob="draws", smallest=FEWEST_DRAWS, largest=512, cost=_tails_cost)
def noise_tails(subject: Subject, *, rng: Generator, draws: int = 128) -> Reading:
    """Tail index of the gradient noise of batches as large as those in use, beside the same of Gaussian noise: `tail_index` without replacement.

    Shapes: value (4,).   Units: none.   Error: as `tail_index`, of the batches drawn.   Assumes: the examples at hand are the data; eval mode.
    Cost: `draws` gradients of one batch.   Raises: as `tail_index`; OutOfScope where the batch size is not known or holds all examples.
    Source: as `tail_index`.
    """
    found = tail_index(subject, rng=rng, batch_size=batch_in_use(subject), replacement=False, draws=draws)
    return dataclasses.replace(found, name="noise_tails", error_kind="probe")


def _inverse_indices(noise: Float64[Array, "draws columns"], mix: Indices) -> tuple[Float64[Array, "groups"], Float64[Array, "groups"]]:
    """1 / alpha of each group of batches: pooled, the coordinates of a group mixed, so that a sum takes them as they come; and in each coordinate, averaged."""
    groups = noise.reshape(GROUPS, -1, noise.shape[1])
    pooled = groups.reshape(GROUPS, -1)[:, mix, None]
    most = int(math.sqrt(len(noise)))
    return _grown(pooled, int(math.sqrt(noise.size))), _grown(groups, max(k for k in range(1, most + 1) if groups.shape[1] % k == 0))


def _grown(x: Float64[Array, "groups n columns"], block: int) -> Float64[Array, "groups"]:
    """As `tail_index_estimate`, of each group, averaged over columns."""
    block = min(block, x.shape[1])
    x = x[:, : x.shape[1] // block * block]
    sums = x.reshape(len(x), -1, block, x.shape[2]).sum(2)
    log = lambda a: np.log(np.maximum(np.abs(a), 1e-300)).mean((1, 2))  # noqa: E731
    return np.asarray((log(sums) - log(x)) / math.log(block))
