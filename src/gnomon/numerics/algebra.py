"""A small algebra of linear operators: blocks of vectors, sums, scalings and restrictions to some of the parameters."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.subject import Subject

Vector = Float[Tensor, "P"]
Columns = Float[Tensor, "P k"]


class Operator(abc.ABC):
    """A symmetric linear map on the trainable parameters: applied, never formed."""

    @property
    @abc.abstractmethod
    def dimension(self) -> int:
        """The number of trainable parameters."""

    @abc.abstractmethod
    def __call__(self, v: Vector) -> Vector:
        """The product with a vector.  Shapes: v (P,) -> (P,), in the dtype of v."""

    @abc.abstractmethod
    def restricted(self, names: str | Iterable[str]) -> Operator:
        """The diagonal block of some parameters: a layer's name stands for all of its parameters.  Raises: InvalidInput for an unknown name, with the nearest one."""

    def block(self, vectors: Columns) -> Columns:
        """The products with the columns of a matrix.

        A loop over columns: on a processor it is as fast as one product a column, and batching them (vmap over a kept graph) takes a quarter longer.
        Shapes: (P, k) -> (P, k).   Cost: k products.   Raises: InvalidInput for another shape.
        """
        check_block(vectors, self.dimension)
        return torch.stack([self(column) for column in vectors.T.contiguous()]).T

    def transpose(self, v: Vector) -> Vector:
        """The product with the transpose, which is the operator itself.  Shapes: v (P,) -> (P,)."""
        return self(v)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self(v) if v.ndim == 1 else self.block(v)

    def __add__(self, other: Operator) -> Sum:
        return Sum((self, other))

    def __sub__(self, other: Operator) -> Sum:
        return Sum((self, -1.0 * other))

    def __mul__(self, factor: float) -> Scaled:
        return Scaled(self, float(factor))

    __rmul__ = __mul__


def check_block(vectors: Tensor, dimension: int) -> None:
    """Raises: InvalidInput where a matrix does not have `dimension` rows and at least one column."""
    if vectors.ndim != 2 or vectors.shape[0] != dimension or not vectors.shape[1]:
        raise InvalidInput(f"A block of shape ({dimension}, k) was expected, one vector a column, not {tuple(vectors.shape)}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Sum(Operator):
    """A + B + ..."""

    terms: tuple[Operator, ...]

    def __post_init__(self) -> None:
        sizes = [term.dimension for term in self.terms]
        if len(set(sizes)) != 1:
            raise InvalidInput(f"Operators that are added must act on the same parameters; here are dimensions {sizes}.")

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return self.terms[0].dimension

    def __call__(self, v: Vector) -> Vector:
        """The sum of the products.  Shapes: v (P,) -> (P,)."""
        total = self.terms[0](v)
        for term in self.terms[1:]:
            total = total + term(v)
        return total

    def restricted(self, names: str | Iterable[str]) -> Sum:
        """The sum of the restrictions."""
        wanted = [names] if isinstance(names, str) else list(names)
        return Sum(tuple(term.restricted(wanted) for term in self.terms))


@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(Operator):
    """c A."""

    of: Operator
    factor: float

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return self.of.dimension

    def __call__(self, v: Vector) -> Vector:
        """c A v.  Shapes: v (P,) -> (P,)."""
        return self.factor * self.of(v)

    def restricted(self, names: str | Iterable[str]) -> Scaled:
        """The restriction, scaled."""
        return Scaled(self.of.restricted(names), self.factor)


@dataclasses.dataclass(frozen=True, eq=False)
class Identity(Operator):
    """v -> v, on the trainable parameters of a subject: a ridge or a damping to be added."""

    subject: Subject

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return self.subject.dimension

    def __call__(self, v: Vector) -> Vector:
        """A copy of v.  Shapes: v (P,) -> (P,)."""
        return v.clone()

    def restricted(self, names: str | Iterable[str]) -> Identity:
        """The identity on some parameters."""
        return dataclasses.replace(self, subject=restrict(self.subject, names))


def restrict(subject: Subject, names: str | Iterable[str]) -> Subject:
    """The subject with derivatives taken of some parameters only, in their old order; a layer's name stands for all of its parameters.

    Raises: InvalidInput for an unknown name, with the nearest one; OutOfScope for parameters that are frozen.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    held = {name: canonical for canonical, copies in _copies(subject).items() for name in copies}
    chosen: set[str] = set()
    for name in wanted:
        found = {held[key] for key in held if key == name or key.startswith(name + ".")}
        if not found:
            layers = {key.rpartition(".")[0] for key in held} - {""}
            raise unknown("parameter or layer", name, {*held, *layers})
        if not found & set(subject.trainable):
            raise OutOfScope(f"{name!r} is frozen (requires_grad=False): no derivatives are taken of it. Unfreeze it before Subject.freeze.")
        chosen |= found & set(subject.trainable)
    if not chosen:
        raise InvalidInput("Name at least one parameter or layer to restrict an operator to.")
    return dataclasses.replace(subject, trainable=tuple(key for key in subject.trainable if key in chosen), _shared={})


def _copies(subject: Subject) -> dict[str, list[str]]:
    """Every name that each parameter of the state goes by: tied ones have several."""
    first: dict[int, str] = {}
    out: dict[str, list[str]] = {}
    for name, value in subject.module.named_parameters(remove_duplicate=False):
        out.setdefault(first.setdefault(id(value), name), []).append(name)
    return out
