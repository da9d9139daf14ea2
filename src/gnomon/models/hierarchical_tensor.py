"""Tensors in hierarchical Tucker form under gradient descent, for many starts at once: a tree of local sums of components over any mode tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.factor_descent import FactorDescent, SquaredSlope, check_slope, fitted_exponent, moments, squared_slope

Tree = int | Sequence["Tree"]
"""A mode, or the nodes below a node: ((0, 1), (2, 3)) is the perfect binary tree of order 4."""
Weights = Sequence[Float[Tensor, "starts _ _"]]
Dense = Float[Tensor, "starts *modes"]
Label = tuple[int, ...]
SCALINGS = 300
"""Turns in which rows and columns are scaled; each brings them closer by a factor."""


def binary_tree(order: int) -> Tree:
    """The binary tree over modes 0, ..., order - 1, perfect where the order is a power of two: each node is cut in the middle.  Raises: InvalidInput for an order below 2."""
    if order < 2:
        raise InvalidInput(f"A mode tree has 2 modes or more, not {order}.")

    def between(first: int, last: int) -> Tree:
        middle = (first + last + 1) // 2
        return first if last - first == 1 else (between(first, middle), between(middle, last))

    return between(0, order)


def modes_of(tree: Tree) -> Label:
    """The modes below a node, as they stand in the tree.  Raises: InvalidInput for what is no tree."""
    if not isinstance(tree, (int, tuple, list)):
        raise InvalidInput(f"A mode tree is made of tuples and the numbers of modes, such as ((0, 1), (2, 3)), not {tree!r}.")
    return (tree,) if isinstance(tree, int) else tuple(mode for child in tree for mode in modes_of(child))


def nodes(tree: Tree) -> Iterator[tuple[Label, Tree]]:
    """Every node with its label, the modes below it in rising order: children before their parents, the root last.  The weights of a tree stand in this order."""
    if not isinstance(tree, int):
        for child in tree:
            yield from nodes(child)
    yield tuple(sorted(modes_of(tree))), tree


def weight_shapes(modes: Sequence[int], tree: Tree, widths: int | Mapping[Label, int]) -> list[tuple[int, int]]:
    """(rows, columns) of each node's matrix: (d_n, R_parent) at mode n, (R_node, R_parent) inside, (R_root, 1) at the root.

    `widths` is the number R of local components of each node inside, one for all or by label.
    Raises: InvalidInput for a tree that does not hold each mode once, nodes of fewer than two children, and widths that are missing or below 1.
    """
    if sorted(modes_of(tree)) != list(range(len(modes))) or len(modes) < 2:
        raise InvalidInput(f"A mode tree of {len(modes)} modes, 2 at least, holds each of 0 to {len(modes) - 1} once, such as {binary_tree(max(len(modes), 2))}, not {tree}.")
    inside = {label: node for label, node in nodes(tree) if not isinstance(node, int)}
    wide = widths if isinstance(widths, Mapping) else dict.fromkeys(inside, widths)
    if any(len(node) < 2 for node in inside.values()) or wide.keys() != inside.keys() or any(int(n) != n or n < 1 for n in (*wide.values(), *modes)):
        raise InvalidInput(
            f"Modes and widths are whole numbers of at least 1, and nodes inside have two children or more and a width each, {sorted(inside)}; {tuple(modes)} and {widths} came."
        )
    columns = {tuple(sorted(modes_of(child))): wide[label] for label, node in inside.items() for child in node}
    return [(modes[node] if isinstance(node, int) else wide[label], columns.get(label, 1)) for label, node in nodes(tree)]


def balanced_weights(
    modes: Sequence[int], tree: Tree, *, widths: int | Mapping[Label, int], size: float, starts: int, skew: float = 1.0, rng: Generator
) -> list[Float[Tensor, "starts _ _"]]:
    """Normal matrices whose rows and columns are scaled, by turns, until every local component is balanced: all of its vectors have one norm.

    At each node the norms of the local components are alike.  All matrices have the Frobenius norm `size`, whose power by the number of nodes bounds the tensor's norm.
    Then each mode's matrix times `skew`, the root's over all of these: the same tensor, no longer balanced.

    Shapes: those of `weight_shapes`, starts first, float64, as `nodes` stand.   Raises: InvalidInput as `weight_shapes`, and for numbers that are not positive.
    """
    shapes = weight_shapes(modes, tree, widths)
    if starts < 1 or min(size, skew) <= 0:
        raise InvalidInput(f"Starts, size and skew are above 0, not {starts}, {size:g} and {skew:g}.")
    weights = []
    for place, (shape, (_, node)) in enumerate(zip(shapes, nodes(tree), strict=True)):
        squares = chance.normal(starts, *shape, rng=chance.child(rng, "node", place))
        signs, squares = squares.sign(), squares.square()
        if place == len(shapes) - 1:
            squares = torch.ones_like(squares)
        elif not isinstance(node, int):
            for _ in range(SCALINGS):
                squares = squares / squares.sum(2, keepdim=True)
                squares = squares / squares.sum(1, keepdim=True)
        squares = squares / squares.sum(1, keepdim=True) / shape[1]
        weights.append(signs * squares.sqrt() * size * (skew if isinstance(node, int) else 1.0))
    return [*weights[:-1], weights[-1] / skew ** len(modes)]


def dense(weights: Weights, tree: Tree) -> Dense:
    """The tensor of the weights: at each node a local sum of components, each the product of one part of every child.

    W^(node, s) = sum_r W^node[r, s] prod_(children) W^(child, r),   W^(mode, r) the r-th column of the mode's matrix

    Shapes: as `nodes` stand, (starts, d_n, R_parent), (starts, R_node, R_parent), (starts, R_root, 1) -> (starts, d_1, ..., d_N).
    Cost: about starts x prod(d) x R_root multiplications at the root, less below.
    """
    return _up(weights, tree)[0]


Join = tuple[int, list[int], list[Tensor]]
"""A node inside, by its place among the nodes, with the places of its children, and what is joined: the first child, it with the second, ..."""


def _up(weights: Weights, tree: Tree) -> tuple[Dense, list[Tensor], list[Join]]:
    """The tensor, the part of every node, flat over the modes below it, and how they were joined."""
    place = {label: number for number, (label, _) in enumerate(nodes(tree))}
    parts, joins = list(weights), []
    for label, node in nodes(tree):
        if isinstance(node, int):
            continue
        here, below = place[label], [place[tuple(sorted(modes_of(child)))] for child in node]
        weight, root = weights[here], here == len(weights) - 1
        joined = [parts[below[0]] * weight.mT if root else parts[below[0]]]  # the root's weights go into a child, so that the last product is one of matrices
        for child in below[1:-1] if root else below[1:]:
            joined.append((joined[-1][:, :, None] * parts[child][:, None]).flatten(1, 2))
        parts[here] = joined[-1] @ parts[below[-1]].mT if root else joined[-1] @ weight
        joins.append((here, below, joined))
    order = modes_of(tree)
    sizes = [weights[place[mode,]].shape[1] for mode in order]
    return parts[-1].reshape(len(parts[-1]), *sizes).permute(0, *(1 + order.index(mode) for mode in range(len(order)))), parts, joins


def gradients(weights: Weights, tree: Tree, slope: Callable[[Dense], Dense]) -> list[Float[Tensor, "starts _ _"]]:
    """The gradient of a loss of the tensor, whose gradient there is slope(tensor), in each matrix: the joins undone from the root down.

    Shapes: those of the weights.   Cost: three times `dense`.
    """
    tensor, parts, joins = _up(weights, tree)
    order = modes_of(tree)
    pulls = [torch.empty(0)] * len(parts)
    pulls[-1] = slope(tensor).permute(0, *(1 + mode for mode in order)).reshape(parts[-1].shape)
    for here, below, joined in reversed(joins):
        pull, root = pulls[here], here == len(parts) - 1
        if root:
            pulls[below[-1]], pull = pull.mT @ joined[-1], pull @ parts[below[-1]]
        else:
            pulls[here], pull = joined[-1].mT @ pull, pull @ weights[here].mT
        for child, before in reversed(list(zip(below[1:-1] if root else below[1:], joined, strict=False))):
            apart = pull.unflatten(1, (before.shape[1], -1))
            pulls[child], pull = (apart * before[:, :, None]).sum(1), (apart * parts[child][:, None]).sum(2)
        if root:
            pulls[here], pull = (pull * parts[below[0]]).sum(1)[:, :, None], pull * weights[here].mT
        pulls[below[0]] = pull
    return pulls


def descent(weights: Weights, tree: Tree, slope: Callable[[Dense], Dense], *, lr: float) -> FactorDescent:
    """Gradient descent on all matrices of a loss of their tensor, to be run.

    Shapes: as `dense`; slope maps the tensor to the loss's gradient there.   Cost: `gradients` a step.
    Raises: InvalidInput as `FactorDescent` and `weight_shapes`, and for weights that do not fit the tree or a slope of another shape.
    """
    check_weights(weights, tree)
    check_slope(slope, dense(weights, tree))
    made = FactorDescent(weights, lambda parts: gradients(parts, tree, slope), lr=lr)
    return made


def descend(weights: Weights, tree: Tree, slope: Callable[[Dense], Dense], *, lr: float, records: Sequence[int]) -> list[list[Float[Tensor, "starts _ _"]]]:
    """The matrices after these numbers of steps of `descent`.  A start that diverges is kept as it was before the step that a warning names.

    Cost: as `descent`.   Raises: InvalidInput as `descent`, and for records that fall.
    """
    return [[weight.clone() for weight in factors] for factors in descent(weights, tree, slope, lr=lr).recorded(records)]


def check_weights(weights: Weights, tree: Tree) -> None:
    """Raises: InvalidInput where the matrices are not those of the tree, in the order of `nodes`."""
    known = list(nodes(tree))
    shapes = [tuple(weight.shape) for weight in weights]
    if len(weights) != len(known) or any(len(shape) != 3 for shape in shapes):
        raise InvalidInput(f"The tree {tree} has a matrix (starts, rows, columns) for each of its nodes, {[label for label, _ in known]}, not {shapes}.")
    inside = {label: shape[1] for (label, node), shape in zip(known, shapes, strict=True) if not isinstance(node, int)}
    modes = [shape[1] for _, shape in sorted((label, shape) for (label, node), shape in zip(known, shapes, strict=True) if isinstance(node, int))]
    expected = weight_shapes(modes, tree, inside)
    if [shape[1:] for shape in shapes] != expected:
        raise InvalidInput(f"The columns of a node's matrix are its parent's components: {expected} after the starts, as nodes stand, not {[shape[1:] for shape in shapes]}.")


def _local(weights: Weights, tree: Tree) -> Iterator[tuple[Label, Tensor, list[Tensor]]]:
    """Each node inside, with its matrix and those of its children."""
    known = {label: weight for (label, _), weight in zip(nodes(tree), weights, strict=True)}
    for label, node in nodes(tree):
        if not isinstance(node, int):
            yield label, known[label], [known[tuple(sorted(modes_of(child)))] for child in node]


def component_norms(weights: Weights, tree: Tree) -> dict[Label, Float[Tensor, "starts R"]]:
    """The norms of the local components of each node inside: |row r of its matrix| times |column r| of each child's.  Shapes: by label, (starts, R_node)."""
    return {label: weight.norm(dim=2) * torch.stack([child.norm(dim=1) for child in children]).prod(0) for label, weight, children in _local(weights, tree)}


def component_pulls(weights: Weights, tree: Tree, slope: Callable[[Dense], Dense]) -> dict[Label, Float[Tensor, "starts R"]]:
    """<-G, C_r> for each local component: how much its direction lowers the loss.  C_r is the tensor of all that goes through it, over its norm.

    The tensor is linear in row r of the node's matrix, through which all of it goes: <G, C_r> |component r| = <dL / d(row r), row r>.
    Shapes: by label, (starts, R_node).   Cost: `gradients`.
    """
    moves = {label: move for (label, _), move in zip(nodes(tree), gradients(weights, tree, slope), strict=True)}
    own = {label: weight for (label, _), weight in zip(nodes(tree), weights, strict=True)}
    return {label: -(moves[label] * own[label]).sum(2) / norms.clamp_min(torch.finfo(norms.dtype).tiny) for label, norms in component_norms(weights, tree).items()}


def hierarchical_singular_values(tensor: Dense, tree: Tree) -> dict[Label, Float[Tensor, "starts k"]]:
    """The singular values of the tensor as a matrix, the modes below a node against all others, for each node but the root; the numbers that are not 0 are its hierarchical rank.

    Shapes: (starts, d_1, ..., d_N) -> by label, (starts, k), k the smaller side.   Cost: a singular value decomposition a node.
    Raises: InvalidInput for a tree of another order.
    """
    order = tensor.ndim - 1
    if sorted(modes_of(tree)) != list(range(order)):
        raise InvalidInput(f"The tree {tree} does not hold each of the modes 0 to {order - 1} of a tensor {tuple(tensor.shape)} (starts first) once.")
    found = {}
    for label, _ in nodes(tree):
        if len(label) < order:
            rest = [mode for mode in range(order) if mode not in label]
            found[label] = torch.linalg.svdvals(tensor.permute(0, *(1 + mode for mode in (*label, *rest))).flatten(1 + len(label)).flatten(1, len(label)))
    return found


def growth_exponent(start: Weights, tree: Tree, slope: Callable[[Dense], Dense], *, lr: float, steps: int, times: int = 20) -> float:
    """The slope of log(velocity / pull) of local components against the log of their norms, over those of all nodes at `times` moments of a descent, as `fitted_exponent`.

    Assumes: a tree whose nodes have equally many children.   Raises: as `descend`.
    """
    path = descend(start, tree, slope, lr=lr, records=moments(steps, times))
    norms = [torch.cat(list(component_norms(weights, tree).values()), 1) for weights in path]
    return fitted_exponent(norms, [torch.cat(list(component_pulls(weights, tree, slope).values()), 1) for weights in path[1::3]], lr=lr)


def completion(modes: Sequence[int], tree: Tree, *, rank: int, share: float, rng: Generator) -> SquaredSlope:
    """The slope of the completion of a tensor of norm 1 and of this rank at every node of the tree, of whose entries this share is seen.   Raises: as `balanced_weights`."""
    target = dense(balanced_weights(modes, tree, widths=rank, size=1.0, starts=1, rng=chance.child(rng, "tensor")), tree)[0]
    seen = torch.zeros(target.numel(), dtype=target.dtype)
    seen[chance.permutation(target.numel(), rng=chance.child(rng, "seen"))[: round(share * target.numel())]] = 1.0
    return squared_slope(target / target.norm(), seen.reshape(target.shape))
