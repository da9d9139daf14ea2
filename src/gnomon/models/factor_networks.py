"""Factorisations as networks that read entries, so that any loss, optimizer and watch goes with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gnomon.core.errors import InvalidInput
from gnomon.models import hierarchical_tensor as trees
from gnomon.models.hierarchical_tensor import Tree


class MatrixProduct(nn.Module):
    """f(i, j) = (W_N ... W_1)[i, j]: an entry of a product of matrices, W_1 first.

    Shapes: W_1 (d_1, d_0), ..., W_N (d_N, d_N-1); places (n, 2) of whole numbers to (n,).   Raises: InvalidInput for matrices that do not chain.
    """

    def __init__(self, factors: Sequence[Float[Tensor, "_ _"]]) -> None:
        super().__init__()
        if not factors or any(a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] for a, b in zip(factors, [*factors[1:], factors[-1].T], strict=True)):
            raise InvalidInput(f"Factors are (d_1, d_0), (d_2, d_1), ..., the first to act first; {[tuple(factor.shape) for factor in factors]} came.")
        self.factors = nn.ParameterList([factor.detach().clone() for factor in factors])

    def chain(self) -> list[str]:
        """The matrices, the first to act first."""
        return [f"factors.{place}" for place in range(len(self.factors))]

    def forward(self, places: Int64[Tensor, "n 2"]) -> Float[Tensor, "n"]:
        """The entries at these places."""
        first, *others = self.factors
        columns = first.T[places[:, 1]]
        for factor in others[:-1]:
            columns = columns @ factor.T
        rows = others[-1][places[:, 0]] if others else nn.functional.one_hot(places[:, 0], len(first)).to(first)
        return (rows * columns).sum(1)


class ComponentSum(nn.Module):
    """f(i_1, ..., i_N) = sum_r w_r^1[i_1] ... w_r^N[i_N]: an entry of a tensor as a sum of components.

    Shapes: N tensors (r, d_n); places (n, N) of whole numbers to (n,).   Raises: InvalidInput for vectors of unequal numbers of components.
    """

    def __init__(self, vectors: Sequence[Float[Tensor, "r _"]]) -> None:
        super().__init__()
        if len(vectors) < 2 or any(part.ndim != 2 or len(part) != len(vectors[0]) for part in vectors):
            raise InvalidInput(f"Vectors are two tensors or more (components, d_n), alike but for d_n; {[tuple(part.shape) for part in vectors]} came.")
        self.vectors = nn.ParameterList([part.detach().clone() for part in vectors])

    def components(self) -> dict[str, list[tuple[str, int]]]:
        """The vectors of the components."""
        return {"components": [(f"vectors.{n}", 0) for n in range(len(self.vectors))]}

    def forward(self, places: Int64[Tensor, "n N"]) -> Float[Tensor, "n"]:
        """The entries at these places."""
        return math.prod(part.T[place] for part, place in zip(self.vectors, places.unbind(1), strict=True)).sum(1)


class HierarchicalTucker(nn.Module):
    """f(i_1, ..., i_N) = sum_r W^root[r] prod_(children) f^child_r, down to the modes' f_r = W^n[i_n, r]: an entry of a tensor in hierarchical Tucker form.

    Shapes: weights as `hierarchical_tensor.nodes` stand, (rows, columns) each; places (n, N) of whole numbers to (n,).
    Raises: InvalidInput for weights that do not fit the tree.
    """

    def __init__(self, weights: Sequence[Float[Tensor, "_ _"]], tree: Tree) -> None:
        super().__init__()
        trees.check_weights([weight[None] for weight in weights], tree)
        self.tree = tree
        self.weights = nn.ParameterList([weight.detach().clone() for weight in weights])

    def components(self) -> dict[str, list[tuple[str, int]]]:
        """The vectors of the local components of each node: the rows of its matrix and the columns of its children's."""
        place = {label: f"weights.{number}" for number, (label, _) in enumerate(trees.nodes(self.tree))}
        inside = [(label, node) for label, node in trees.nodes(self.tree) if not isinstance(node, int)]
        return {str(label): [(place[label], 0), *((place[tuple(sorted(trees.modes_of(child)))], 1) for child in node)] for label, node in inside}

    def forward(self, places: Int64[Tensor, "n N"]) -> Float[Tensor, "n"]:
        """The entries at these places."""
        weights = iter(self.weights)

        def below(node: Tree) -> Tensor:
            if isinstance(node, int):
                made: Tensor = next(weights)[places[:, node]]
                return made
            parts = torch.stack([below(child) for child in node])
            return parts.prod(0) @ next(weights)

        return below(self.tree)[:, 0]
