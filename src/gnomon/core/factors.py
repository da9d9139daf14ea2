"""The factorisations in a network: which of its parameters are the vectors of components, and which are matrices that only multiply each other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from gnomon.core.errors import InvalidInput


@dataclasses.dataclass(frozen=True)
class Components:
    """Components that are products of vectors, one of each parameter: `vectors` names the parameters, each with the dimension that runs over the components."""

    name: str
    vectors: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Chain:
    """Matrices (out, in) that only multiply each other, the first to act first: the components of their product are its singular vectors."""

    name: str
    matrices: tuple[str, ...]


def factorizations(module: nn.Module) -> list[Components | Chain]:
    """The factorisations in a module, in the order of its parts.

    A part that has a method `components()`, which gives by label the names of its own parameters with the dimension that runs over the components, or `chain()`, which
    names matrices, says what it is.  Otherwise an `nn.ParameterList` of two matrices or more that have their first dimension in common, or their last, and do not chain,
    holds the vectors of a sum of components; and `nn.Linear` layers without bias, two or more after each other in an `nn.Sequential`, are a chain.
    Tied parameters go by their first name.
    Raises: InvalidInput where `components()` or `chain()` names what is not there or does not fit.
    """
    found: list[Components | Chain] = []
    told: list[str] = []
    known = dict(module.named_parameters(remove_duplicate=False))
    first = {id(value): name for name, value in module.named_parameters()}
    for prefix, part in module.named_modules():
        if any(prefix == above or prefix.startswith(f"{above}.") or not above for above in told):
            continue
        here = f"{prefix}." if prefix else ""
        if callable(says := getattr(part, "components", None)):
            told.append(prefix)
            found += [_checked(label, given, here, known) for label, given in says().items()]
        elif callable(says := getattr(part, "chain", None)):
            told.append(prefix)
            found.append(_chained(prefix or "product", [here + name for name in says()], known))
        elif isinstance(part, nn.ParameterList):
            matrices = [(here + str(place), value) for place, value in enumerate(part) if isinstance(value, Tensor)]
            found += _shared(prefix or "components", matrices)
        elif isinstance(part, nn.Sequential):
            found += _runs(part, here)
    own = {name: first[id(value)] for name, value in known.items()}
    return [
        Chain(group.name, tuple(own[name] for name in group.matrices))
        if isinstance(group, Chain)
        else Components(group.name, tuple((own[name], dim) for name, dim in group.vectors))
        for group in found
    ]


def has_factors(module: nn.Module) -> bool:
    """Whether `factorizations` finds any; what is told wrongly counts, so that reading it says what is wrong."""
    try:
        return bool(factorizations(module))
    except InvalidInput:
        return True


def _checked(label: str, given: Iterable[tuple[str, int]], here: str, known: Mapping[str, Tensor]) -> Components:
    vectors = tuple((here + name, int(dim)) for name, dim in given)
    sizes = {known[name].shape[dim] if name in known and -known[name].ndim <= dim < known[name].ndim else None for name, dim in vectors}
    if len(sizes) != 1 or None in sizes:
        shapes = {name: tuple(known[name].shape) if name in known else "no such parameter" for name, _ in vectors}
        raise InvalidInput(f"The components {label!r} need parameters with equally many along the dimensions named, {list(vectors)}; they are {shapes}.")
    return Components(here + str(label), vectors)


def _chained(name: str, matrices: Sequence[str], known: Mapping[str, Tensor]) -> Chain:
    shapes = {matrix: tuple(known[matrix].shape) if matrix in known else "no such parameter" for matrix in matrices}
    if not shapes or any(len(shape) != 2 for shape in shapes.values()) or any(a[0] != b[1] for a, b in itertools.pairwise(shapes.values())):
        raise InvalidInput(f"The chain {name!r} needs matrices (out, in), the first to act first, not {shapes}.")
    return Chain(name, tuple(matrices))


def _shared(name: str, matrices: Sequence[tuple[str, Tensor]]) -> Iterator[Components]:
    shapes = [tuple(value.shape) for _, value in matrices]
    if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes) or all(a[0] == b[1] for a, b in itertools.pairwise(shapes)):
        return
    for dim in (0, 1):
        if len({shape[dim] for shape in shapes}) == 1:
            yield Components(name, tuple((key, dim) for key, _ in matrices))
            return


def _runs(part: nn.Sequential, here: str) -> Iterator[Chain]:
    plain = [(name, isinstance(layer, nn.Linear) and layer.bias is None) for name, layer in part._modules.items()]  # named_children leaves out a layer that comes again
    for bare, run in itertools.groupby(plain, key=lambda item: item[1]):
        names = [f"{here}{name}.weight" for name, _ in run]
        if bare and len(names) > 1:
            yield Chain(f"{names[0].removesuffix('.weight')} to {names[-1].removesuffix('.weight')}", tuple(names))
