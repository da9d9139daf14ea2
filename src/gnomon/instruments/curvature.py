"""Traces of the curvature, exactly where they can be had; curvature layer by layer; products with the inverse Hessian and influence functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.affine import bent_by
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics import dense
from gnomon.numerics.diagonal import MOST_OUTPUTS, gauss_newton_traces, outputs_of
from gnomon.numerics.fisher import gradient_products
from gnomon.numerics.gram import gradient_norms
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.operators import GaussNewton, Hessian, _Curvature, loss_gradient
from gnomon.numerics.per_example import plan_of
from gnomon.numerics.solve import Solution, conjugate_gradient
from gnomon.numerics.trace import deflated, hutch_plus_plus

HUTCHINSON_1989 = Source("hutchinson1989")
SCHRAUDOLPH_2002 = Source("schraudolph2002")
KOH_LIANG_2017 = Source("koh2017")
UNIT = "loss / parameter²"
GROUPS = 16
"""Groups of examples whose spread gives the error of a subsample."""
ROUNDING = 256
"""Rounding of an exact trace, in units of eps."""


def one_by_one(subject: Subject) -> tuple[str, ...]:
    """The parameters whose per-example gradients are taken by differentiating one example at a time, in words."""
    return tuple(f"{key}: no layer that is known holds it, so its gradients are taken one example at a time" for key in plan_of(subject).slow)


def probed_trace(
    subject: Subject, operator: _Curvature, *, name: str, probes: int, rng: Generator, source: Source = HUTCHINSON_1989, method: str = "hutchinson", known: Tensor | None = None,
) -> Reading:  # fmt: skip
    """An estimate of a curvature's trace by random signs, with the error of the probes and, on a subsample, that of the examples.

    `hutchinson` probes the whole; `deflated` what is left outside the span of `known`, whose part is exact; `hutch++` what is left outside a sketch of `probes` / 3 products.

    Shapes: value (); samples (probes,) on all examples.   Units: loss / parameter^2.   Error: standard error over probes; on a subsample that over groups of examples is
    added in quadrature, with the finite-population factor.   Assumes: eval mode; the examples are a random sample of their population.   Cost: `probes` products.
    Raises: InvalidInput for fewer than two probes (six for `hutch++`).   Source: `source`, which the reading carries.
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    like, n, population = subject.state[subject.trainable[0]], len(subject.train), subject.train.population
    groups, share = min(GROUPS, n) if n < population else 1, torch.ones(1, dtype=torch.float64)

    def form(v: Tensor) -> Tensor:
        nonlocal share
        if groups == 1:
            return torch.dot(v.double().cpu(), operator(v).double().cpu())[None]
        values, share = operator.quadratic(v, groups=groups)
        return values * share

    common: dict[str, Any] = {"unit": UNIT, "source": source, "assumes": ("the loss is that of eval mode",)}
    none = like.new_zeros(subject.dimension, 0)
    if method == "hutch++":
        found = hutch_plus_plus(operator, subject.dimension, rng=rng, products=probes, like=like, form=form)
    else:
        found = deflated(operator, none if known is None else known, rng=rng, probes=probes, like=like, form=form)
    rows = found.samples.sum(1)
    if groups == 1:
        if not found.probes:
            return Reading(name, found.value, error=ROUNDING * found.error, error_kind="bound", **common)
        return Reading.of_samples(name, rows, error_kind="probe", **common)
    by_probe = found.error**2 if found.probes else 0.0
    by_group = float(((found.samples.mean(0) - share * found.value) ** 2).sum()) * groups / (groups - 1) * (1 - n / population)
    total = by_probe + by_group
    freedom = total**2 / max(by_probe**2 / max(found.probes - 1, 1) + by_group**2 / (groups - 1), 1e-300)
    return Reading(name, found.value, error=math.sqrt(total), error_kind="sample", n=max(int(freedom) + 1, 2), **common)


def exact_trace(subject: Subject, *, name: str) -> Reading:
    """The trace of the Gauss-Newton matrix from per-example quantities; on a subsample with the standard error over examples.

    Shapes: value ().   Units: loss / parameter^2.   Error: rounding; on a subsample the standard error over examples, with the finite-population factor.
    Assumes: eval mode; the examples are a random sample of their population.   Cost: as `gauss_newton_traces`.   Raises: OutOfScope for more than 128 outputs an example.
    Source: Schraudolph 2002.
    """
    parts = gauss_newton_traces(subject)
    each = torch.stack(list(parts.values())).sum(0)
    value, n, population = float(each.mean()), len(subject.train), subject.train.population
    details = {"by_parameter": {key: float(part.mean()) for key, part in parts.items()}}
    common: dict[str, Any] = {"source": SCHRAUDOLPH_2002, "skipped": one_by_one(subject), "assumes": ("the loss is that of eval mode",), "details": details}
    if n == population or n < 2:
        bound = ROUNDING * torch.finfo(subject.dtype).eps * float(each.abs().mean())
        return Reading(name, value, UNIT, error=bound, error_kind="bound", **common)
    return Reading(name, value, UNIT, error=float(each.std()) / math.sqrt(n) * math.sqrt(1 - n / population), error_kind="sample", n=n, **common)


@instrument(
    topic="landscape", truth=dense.gauss_newton_trace, knob="probes", smallest=16, largest=256,
    cost=lambda subject, probes: Cost(gradients=outputs_of(subject) / 3 + 1 if outputs_of(subject) <= MOST_OUTPUTS else 2.4 * probes, bytes=operator_bytes(subject)),
)  # fmt: skip
def ggn_trace(subject: Subject, *, rng: Generator, probes: int = 64) -> Reading:
    """Trace of the Gauss-Newton matrix of the mean training loss: exactly from per-example gradients up to 128 outputs an example, else by Hutchinson's estimator.

    tr(J^T H_out J) = sum_i sum_k lambda_ik |J_i^T u_ik|^2, over examples i and eigenpairs of the Hessian of the loss with respect to the output.

    Shapes: value ().   Units: loss / parameter^2 (summed over parameters).
    Error: rounding; on a subsample the standard error over examples; by probes the standard error over them.   `details` has the trace of each parameter's block.
    Assumes: eval mode.   Cost: a third of a gradient for each output, or `probes` products.   Raises: InvalidInput for fewer than two probes.
    Source: Schraudolph 2002.
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    if outputs_of(subject) <= MOST_OUTPUTS:
        return exact_trace(subject, name="ggn_trace")
    return probed_trace(subject, GaussNewton(subject), name="ggn_trace", probes=probes, rng=rng, source=SCHRAUDOLPH_2002)


def identity_trace(subject: Subject) -> Reading:
    """The trace of the Hessian where it is that of the Gauss-Newton matrix, and so known exactly: every parameter enters one affine layer, what follows is piecewise linear.

    Shapes: value ().   Units, Error, Assumes, Cost, Source: as `exact_trace`.   Raises: OutOfScope that names the layer which bends, or for more than 128 outputs an example.
    """
    if why := bent_by(subject):
        raise OutOfScope(f"tr H = tr GGN holds where the output is piecewise linear along every parameter; here {why}. Use method='hutchinson'.")
    reading = exact_trace(subject, name="hessian_trace")
    return reading.replace(assumes=(*reading.assumes, "tr H = tr GGN: the output is piecewise linear along every parameter"), interval=reading.interval)


def layer_curvature(subject: Subject, *, rng: Generator, products: int = 64) -> Reading:
    """The largest eigenvalue of each layer's diagonal block of the Hessian, by Lanczos on the restriction to its parameters.

    Shapes: value (layers,).   Units: loss / parameter^2.   Error: the residual bound, rounding included.   `details` has the traces of the Gauss-Newton blocks where they are exact.
    Assumes: eval mode.   Cost: at most `products` products of each block.   Raises: InvalidInput for fewer than three products.
    Source: Wu & Simon 2000.
    """
    if products < 3:
        raise InvalidInput(f"products must be at least 3, not {products}.")
    layers: dict[str, list[str]] = {}
    for key in subject.trainable:
        layers.setdefault(key.rpartition(".")[0] or key, []).append(key)
    whole, values, bounds, converged = Hessian(subject), [], [], []
    for name, keys in layers.items():
        block = whole.restricted(keys)
        found = lanczos_eigenvalues(
            block, block.dimension, k=1, rng=chance.child(rng, name), like=subject.state[keys[0]], max_products=max(products, 3),
        )  # fmt: skip
        values.append(float(found.values[0]))
        bounds.append(float(found.bounds[0]))
        converged.append(bool(found.converged[0]))
    details: dict[str, Any] = {"converged": converged}
    if outputs_of(subject) <= MOST_OUTPUTS:
        traces = gauss_newton_traces(subject)
        details["ggn_trace"] = [sum(float(traces[key].mean()) for key in keys) for keys in layers.values()]
    return Reading("layer_curvature", values, UNIT, error=bounds, error_kind="bound", axes=(Axis("layer", tuple(layers)),), source=Source("wu2000"), details=details)


def inverse_hessian_product(subject: Subject, v: Float[Tensor, "P"], *, damping: float, curvature: str = "hessian", tolerance: float = 1e-4, max_products: int = 200) -> Solution:
    """(A + damping) x = v by conjugate gradients, A the Hessian or the Gauss-Newton matrix (`curvature="ggn"`) of the training loss.

    Shapes: v (P,) -> `x` (P,).   Error: `residual` is |v - (A + damping) x| / |v|, and `converged` says whether it is at most `tolerance`; a warning is logged where not.
    Cost: at most `max_products` products.   Raises: InvalidInput for a negative damping, or where A + damping has a negative curvature: the message says how large damping must be.
    Source: Hestenes & Stiefel 1952.
    """
    kinds = {"hessian": Hessian, "ggn": GaussNewton}
    if curvature not in kinds:
        raise InvalidInput(f"curvature must be 'hessian' or 'ggn', not {curvature!r}.")
    return conjugate_gradient(kinds[curvature](subject), v, damping=damping, tolerance=tolerance, max_products=max_products)


def influence(subject: Subject, *, rng: Generator, damping: float, curvature: str = "ggn", tolerance: float = 1e-4, max_products: int = 200) -> Reading:
    """What leaving out each training example would do to the test loss, to first order: (1/N) grad L_test^T (A + damping)^(-1) g_i.

    Shapes: value (N,), one a training example; positive where the test loss would rise.   Units: loss.
    Error: the part that the linear solver's residual leaves open, |g_i| |r| / (N damping).
    Assumes: a minimum, and that A + damping is the curvature there; eval mode.   Cost: at most `max_products` products, two gradients.
    Raises: OutOfScope without test data; InvalidInput as `inverse_hessian_product`, and for no damping.
    Source: Koh & Liang 2017.
    """
    if damping <= 0:
        raise InvalidInput(f"damping must be positive, not {damping}: it is the curvature that is added in every direction, in units of loss / parameter².")
    target = loss_gradient(subject, "test")[1]
    solved = inverse_hessian_product(subject, target, damping=damping, curvature=curvature, tolerance=tolerance, max_products=max_products)
    along, norms = gradient_products(subject, solved.x), gradient_norms(subject)
    n = len(along)
    left = np.asarray(norms) * float(target.norm()) * solved.residual / (n * damping)
    assumes = (
        f"damping {damping:g}",
        *(() if solved.converged else (f"conjugate gradients stopped at a relative residual of {solved.residual:.1e} after {solved.products} products",)),
    )
    return Reading(
        "influence",
        np.asarray(along) / n,
        "loss",
        error=left,
        error_kind="bound",
        axes=(Axis("example", tuple(float(i) for i in range(n))),),
        source=KOH_LIANG_2017,
        assumes=assumes,
    )
