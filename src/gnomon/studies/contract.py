"""The contract on small networks: what `gnomon check` runs over the instruments and chapters of a plug-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gnomon.core import contract, registry
from gnomon.core import rng as chance
from gnomon.core.contract import ContractBroken
from gnomon.core.errors import OutOfScope
from gnomon.core.registry import Instrument
from gnomon.core.subject import Subject
from gnomon.core.training import Training
from gnomon.models.factor_networks import HierarchicalTucker
from gnomon.models.hierarchical_tensor import balanced_weights, binary_tree
from gnomon.run.plan import unmet

EXAMPLES, TESTS = 64, 48
Outcome = Literal["kept", "broken", "out of scope"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check of one instrument (or chapter) on one small network came to; `why` says it where the contract is not kept."""

    name: str
    check: str
    network: str
    outcome: Outcome
    why: str = ""


class Words(nn.Module):
    """A token model with a dict as its output and a head tied to the embedding: logits = E relu(W e(x) + b).  Shapes: ids (n, length) to (n, length, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """The logits of every position."""
        return {"logits": self.head(torch.relu(self.mix(self.embedding(ids))))}


def token_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the positions whose target is not -1.  Shapes: output (n, length, words), targets (n, length)."""
    return nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1), ignore_index=-1)


def token_weight(targets: Tensor) -> float:
    """How many positions count."""
    return float((targets != -1).sum())


def images(dtype: torch.dtype = torch.float64, examples: int = EXAMPLES, **settings: Any) -> Subject:
    """A convolutional classifier of three classes, 51 parameters."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 2, 3))

    def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = chance.generator(seed, "images")
        return chance.normal(n, 1, 5, 5, rng=rng).to(dtype), chance.integers(3, n, rng=rng)

    return moved(build, dtype, "cross_entropy", data(examples, 0), data(TESTS, 1), **settings)


def words(dtype: torch.dtype = torch.float64, examples: int = EXAMPLES, **settings: Any) -> Subject:
    """A token model whose targets are ignored in part, 27 parameters."""

    def data(n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        rng = chance.generator(seed, "words")
        ids, targets = chance.integers(5, n, 4, rng=rng), chance.integers(5, n, 4, rng=rng)
        targets[chance.uniform(n, 4, rng=rng) < 0.3] = -1
        return {"ids": ids}, targets

    return moved(Words, dtype, token_loss, data(examples, 0), data(TESTS, 1), weight=token_weight, **settings)


def entries(dtype: torch.dtype = torch.float64, examples: int = EXAMPLES, **settings: Any) -> Subject:
    """A tensor in hierarchical Tucker form that reads entries, times nothing else: 74 parameters."""
    tree = binary_tree(4)

    def build() -> nn.Module:
        start = balanced_weights((3, 4, 2, 3), tree, widths=3, size=1.5, starts=1, rng=chance.generator(0, "entries"))
        return HierarchicalTucker([weight[0] for weight in start], tree)

    def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = chance.generator(seed, "entries")
        return torch.stack([chance.integers(d, n, rng=rng) for d in (3, 4, 2, 3)], 1), chance.normal(n, rng=rng).to(dtype)

    return moved(build, dtype, "mse", data(examples, 0), data(TESTS, 1), **settings)


NETWORKS: dict[str, Callable[..., Subject]] = {"images": images, "words": words}


def moved(build: Callable[[], nn.Module], dtype: torch.dtype, loss: Any, train: Any, test: Any, **settings: Any) -> Subject:
    """A subject whose parameters lie away from its initialisation, as training would leave them, and whose buffers are not at their defaults."""
    with chance.scoped(chance.generator(0, "network")):
        initial = build().to(dtype)
    with chance.scoped(chance.generator(0, "network")):
        model = build().to(dtype)
    noise = chance.generator(1, "trained")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * chance.normal(*parameter.shape, rng=noise, like=parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(1.5)
            elif name.endswith("running_mean"):
                buffer.add_(0.1)
    options: dict[str, Any] = {"lr": 0.1, "batch_size": 4, "optimizer": "sgd", "chunk": 5} | settings
    return Subject.freeze(model, loss, train, test, initial=initial, make=lambda: build().to(dtype), **options)


def prepared(instrument: Instrument, subject: Subject) -> Subject:
    """The subject, with a state of Adam where the instrument is for adaptive optimizers."""
    if "adaptive" not in instrument.needs:
        return subject
    moments = {key: 0.1 + chance.uniform(*value.shape, rng=chance.generator(0, key), like=value) for key, value in subject.parameters.items()}
    return dataclasses.replace(subject, training=Training("adam", 0.01, 0.9, second_moment=moments, steps=10))


def subject_for(instrument: Instrument, network: str, dtype: torch.dtype = torch.float64) -> Subject | None:
    """One of NETWORKS with what an instrument needs, or a factorisation where it is one that it needs; None where the instrument is not meant for such a network."""
    build = entries if "factors" in instrument.needs else NETWORKS[network]
    subject = prepared(instrument, build(dtype, chunk=EXAMPLES))
    return None if unmet(subject, instrument, "end") is not None else subject


def check_instrument(instrument: Instrument, *, draws: int = 200) -> Iterator[Finding]:
    """Every check of the contract on every small network.

    Cost: about 20 readings, and `draws` on each network for the coverage.   Raises: nothing; what is broken is a Finding.
    """
    for network in NETWORKS:
        subject = subject_for(instrument, network)
        if subject is None:
            yield Finding(instrument.name, "all", network, "out of scope", "the network lacks what the instrument needs")
            continue
        for check in contract.CHECKS:
            yield _finding(instrument, check.__name__, network, lambda check=check, subject=subject: check(instrument, subject))  # type: ignore[misc]
        yield _finding(instrument, "check_coverage", network, lambda subject=subject: contract.check_coverage(instrument, subject, draws=draws))  # type: ignore[misc]


def _finding(instrument: Instrument, check: str, network: str, run: Callable[[], None]) -> Finding:
    name = check.removeprefix("check_").replace("_", " ")
    try:
        run()
    except OutOfScope as error:
        return Finding(instrument.name, name, network, "out of scope", str(error))
    except ContractBroken as error:
        return Finding(instrument.name, name, network, "broken", str(error).removeprefix(f"{instrument.name}: "))
    except Exception as error:
        return Finding(instrument.name, name, network, "broken", f"it raises {type(error).__name__}: {error}")
    return Finding(instrument.name, name, network, "kept")


def check_chapter(module: ModuleType) -> Finding:
    """A chapter says its title, what theory says and what it assumes, and makes do without any reading."""
    name = module.__name__.rpartition(".")[2]
    missing = [field for field in ("TITLE", "THEORY", "ASSUMES") if not getattr(module, field, None)]
    if missing:
        return Finding(name, "chapter", "-", "broken", f"{module.__name__} does not define {', '.join(missing)}")
    if wrong := [topic for topic in registry.reads(module) if topic not in registry.TOPICS]:
        known = ", ".join(registry.TOPICS)
        return Finding(name, "chapter", "-", "broken", f"it reads the instruments of {wrong[0]!r}, which is no topic; READS names some of {known}")
    return Finding(name, "chapter", "-", "kept")


def check_plugin(root: str, *, draws: int = 200) -> Iterator[Finding]:
    """Every instrument and chapter of a package, against the contract.  Raises: InvalidInput where it does not import or holds none."""
    for module in registry.modules_of(root, "examination"):
        if hasattr(module, "chapter"):
            yield check_chapter(module)
    registry.modules_of(root, "instruments")
    for instrument in registry.registered(root):
        yield from check_instrument(instrument, draws=draws)
