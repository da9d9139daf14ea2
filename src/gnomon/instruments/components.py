"""The components of the factorisations in a network: their norms, and how many of them count; along a training they show which are learnt, one after another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.errors import OutOfScope
from gnomon.core.factors import Chain, Components, factorizations
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics.statistics import effective_number

RAZIN_2022 = Source("razin2022")
ROY_2007 = Source("roy2007")
ROUNDING = 16
"""Rounding of norms and products, in units of eps times the number of factors."""
MOST = 1000
"""Components that are read."""


def _of(subject: Subject) -> dict[str, tuple[Array, Array]]:
    """By factorisation, the norms of its components and the bound on their rounding."""
    found = subject.once("components/norms", lambda: _measured(subject))
    if not found:
        raise OutOfScope("the network has no factorisation: neither components(), chain(), a list of factors nor linear layers without bias that follow each other")
    return found


def _measured(subject: Subject) -> dict[str, tuple[Array, Array]]:
    eps = ROUNDING * torch.finfo(subject.dtype).eps
    found: dict[str, tuple[Array, Array]] = {}
    left = MOST
    for group in factorizations(subject.module):
        if isinstance(group, Chain):
            parts = [subject.state[name].double() for name in group.matrices]
            product = parts[0]
            for part in parts[1:]:
                product = part @ product
            norms = torch.linalg.svdvals(product)
            bound = torch.full_like(norms, eps * len(parts) * float(torch.stack([part.norm() for part in parts]).prod()))
        else:
            norms = torch.stack(_vectors(subject, group)).prod(0)
            bound = eps * len(group.vectors) * norms
        found[group.name] = norms[:left].cpu().numpy(), bound[:left].cpu().numpy()
        left -= len(found[group.name][0])
        if not left:
            break
    return found


def _vectors(subject: Subject, group: Components) -> list[Tensor]:
    return [subject.state[name].double().movedim(dim, 0).flatten(1).norm(dim=1) for name, dim in group.vectors]


def _unbalance(subject: Subject) -> dict[str, float]:
    """By factorisation, the largest of (largest - smallest) / largest over the norms of a component's vectors: 0 where it is balanced."""
    out = {}
    for group in factorizations(subject.module):
        if isinstance(group, Components) and group.name in _of(subject):
            norms = torch.stack(_vectors(subject, group))
            out[group.name] = float((1 - norms.amin(0) / norms.amax(0).clamp_min(1e-300)).max())
    return out


def exact_component_norms(subject: Subject) -> Array:
    """By numpy: norms of whole outer products, and singular values of the product."""
    out = []
    for group in factorizations(subject.module):
        if isinstance(group, Chain):
            product = np.linalg.multi_dot([*(subject.state[name].cpu().double().numpy() for name in reversed(group.matrices)), np.eye(subject.state[group.matrices[0]].shape[1])])
            out.append(np.linalg.svd(product, compute_uv=False))
            continue
        arrays = [np.moveaxis(subject.state[name].cpu().double().numpy(), dim, 0) for name, dim in group.vectors]
        for number in range(len(arrays[0])):
            whole = np.ones(1)
            for array in arrays:
                whole = np.multiply.outer(whole, array[number].ravel()).ravel()
            out.append(np.array([np.linalg.norm(whole)]))
    return np.concatenate(out)[:MOST]


@instrument(topic="factorization", needs=("factors",), truth=exact_component_norms, cost=lambda subject: Cost())
def component_norms(subject: Subject, *, rng: Generator) -> Reading:
    """Norms of the components of every factorisation in the network: the products of their vectors' norms, and of matrices that multiply each other the singular values.

    |w_r^1| ... |w_r^N| of a sum of components;  |W^node[r, :]| prod |W^child[:, r]| of the local components of a hierarchical one;  sigma_r(W_N ... W_1)

    Shapes: value (components,), at most 1,000; `details` has `unbalance` by factorisation, how far the norms of a component's vectors are from each other (0 to 1): the
    laws of growth hold where it is small.   Units: parameter.   Error: bound, rounding of the parameters.
    Assumes: what `core.factors.factorizations` finds or is told are factorisations.   Cost: a pass over the parameters; a singular value decomposition a product.
    Raises: OutOfScope for a network without a factorisation; InvalidInput where its `components()` or `chain()` do not fit.
    Source: Razin, Maman & Cohen 2022 (local components).
    """
    found = _of(subject)
    total = sum(1 for group in factorizations(subject.module) if group.name not in found)
    labels = tuple(f"{name} {number}" for name, (norms, _) in found.items() for number in range(len(norms)))
    return Reading(
        "component_norms", np.concatenate([norms for norms, _ in found.values()]), "parameter", error=np.maximum(np.concatenate([bound for _, bound in found.values()]), 1e-300),
        error_kind="bound", axes=(Axis("component", labels),), source=RAZIN_2022, details={"unbalance": _unbalance(subject)},
        skipped=(f"{total} factorisations beyond the first {MOST} components",) if total else (),
    )  # fmt: skip


def exact_effective_components(subject: Subject) -> Array:
    """By numpy, from the exact norms."""
    norms, out = exact_component_norms(subject), []
    for found, _ in _of(subject).values():
        out.append(effective_number(norms[: len(found)]))
        norms = norms[len(found) :]
    return np.array(out)


@instrument(topic="factorization", needs=("factors",), truth=exact_effective_components, shares="component_norms", cost=lambda subject: Cost())
def effective_components(subject: Subject, *, rng: Generator) -> Reading:
    """How many components of each factorisation count: the exponential of the entropy of their norms' shares, 1 for one alone.

    exp(-sum_r p_r ln p_r),  p_r = s_r / sum_q s_q

    Shapes: value (factorisations,).   Units: components.   Error: bound, rounding of the parameters.   Assumes: as `component_norms`.
    Cost: shared with `component_norms`.   Raises: as `component_norms`.   Source: Roy & Vetterli 2007 (of singular values).
    """
    found = _of(subject)
    values = np.array([effective_number(norms) for norms, _ in found.values()])
    # d rank / rank = -sum_r dp_r ln p_r, with |dp_r| at most the norms' bounds over their sum, and -ln p at most that of the smallest share which counts
    small = -np.log(ROUNDING * torch.finfo(subject.dtype).eps)
    bound = [value * small * 2 * rounding.sum() / max(norms.sum(), 1e-300) for value, (norms, rounding) in zip(values, found.values(), strict=True)]
    return Reading(
        "effective_components", values, "components", error=np.maximum(bound, 1e-300), error_kind="bound", axes=(Axis("factorisation", tuple(found)),), source=ROY_2007,
    )  # fmt: skip
