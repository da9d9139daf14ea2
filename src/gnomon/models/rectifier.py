"""A fully connected ReLU network: what its units may be rescaled by without the function noticing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Generator, Tensor, nn

from gnomon.core.dataset import Dataset, leaves
from gnomon.core.errors import InvalidInput
from gnomon.core.loss import cross_entropy
from gnomon.core.subject import State
from gnomon.models.training import train


class Rectifier(nn.Sequential):
    """f(x) = W_L relu(... relu(W_1 x + b_1) ...) + b_L.

    Shapes: inputs (N, ...), flattened to `sizes[0]` numbers; outputs (N, sizes[-1]).
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])


def trained(sizes: Sequence[int], data: Dataset, *, rng: Generator, epochs: int) -> nn.Module:
    """A Rectifier trained to classify, in the dtype of the data: SGD on the cross-entropy with lr 0.05, momentum 0.9 and batches of 64.

    Cost: `epochs` passes over the data.   Raises: as `train`.
    """
    dtype = leaves(data.blocks[0].inputs)[0].dtype
    return train(lambda: Rectifier(sizes).to(dtype), cross_entropy, data, rng=rng, lr=0.05, momentum=0.9, batch_size=64, epochs=epochs).module


def rescaled(state: State, factor: float, *, less: float = 1.0) -> dict[str, Tensor]:
    """The same function of a Rectifier with other weights: W_l and what it adds up times a in every hidden layer, W_L over a^(L - 1).

    relu(a z) = a relu(z) for a > 0, so W_l -> a W_l and b_l -> a^l b_l.   The last layer is divided by `less` too: another function unless that is 1.
    Raises: InvalidInput for factors that are not positive.
    Source: Dinh et al. 2017, section 3.
    """
    if min(factor, less) <= 0:
        raise InvalidInput(f"ReLU commutes with positive factors alone, not with {factor} and {less}.")
    out = dict(state)
    *hidden, last = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    for depth, layer in enumerate(hidden, 1):
        out[f"{layer}.weight"] = state[f"{layer}.weight"] * factor
        out[f"{layer}.bias"] = state[f"{layer}.bias"] * factor**depth
    out[f"{last}.weight"] = state[f"{last}.weight"] / (factor ** len(hidden) * less)
    return out
