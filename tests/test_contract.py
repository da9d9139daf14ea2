"""Every registered instrument keeps the contract, on a convolutional and on a token network; `make coverage` runs the whole grid."""

import pytest
import torch
from networks import prepared, subject_of, token_loss, token_weight
from torch import nn

from gnomon.core import contract, registry
from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import CHANCE
from gnomon.run.plan import unmet

INSTRUMENTS = registry.instruments()
EXAMPLES = 64


class Words(nn.Module):
    """A token model with dict inputs and a tied head."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return {"logits": self.head(torch.relu(self.mix(self.embedding(ids))))}


def images(dtype=torch.float64, n=EXAMPLES, **settings):
    """A convolutional classifier of three classes, 51 parameters."""

    def build():
        return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 2 * 2, 3))

    def data(n, seed):
        rng = chance.generator(seed, "images")
        return chance.normal(n, 1, 5, 5, rng=rng).to(dtype), chance.integers(3, n, rng=rng)

    return subject_of(build, dtype, "cross_entropy", data(n, 0), data(48, 1), **settings)


def words(dtype=torch.float64, n=EXAMPLES, **settings):
    """A token model whose targets have some ignored, 27 parameters."""

    def data(n, seed):
        rng = chance.generator(seed, "words")
        ids, targets = chance.integers(5, n, 4, rng=rng), chance.integers(5, n, 4, rng=rng)
        targets[chance.uniform(n, 4, rng=rng) < 0.3] = -1
        return {"ids": ids}, targets

    return subject_of(Words, dtype, token_loss, data(n, 0), data(48, 1), weight=token_weight, **settings)


NETWORKS = {"images": images, "words": words}


def subject_for(instrument, build, dtype=torch.float64):
    """The network with what the instrument needs; None where the instrument says that it has nothing to measure there."""
    subject = prepared(instrument, build(dtype, n=EXAMPLES, chunk=EXAMPLES))
    return None if unmet(subject, instrument, "end") is not None else subject


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, name, network):
    subject = subject_for(INSTRUMENTS[name], NETWORKS[network])
    if subject is None:
        assert INSTRUMENTS[name].needs
        return
    try:
        check(INSTRUMENTS[name], subject)
    except OutOfScope as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize(("network", "dtype"), [("images", torch.float64), ("words", torch.float32)], ids=["images-float64", "words-float32"])
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_stated_intervals_cover_the_truth(name, network, dtype):
    instrument = INSTRUMENTS[name]
    subject = subject_for(instrument, NETWORKS[network], dtype)
    if subject is None or instrument.truth is None:
        assert subject is None or contract.take(instrument, subject).error_kind not in CHANCE
        return
    try:
        seen = contract.coverage(instrument, subject, draws=200)
    except OutOfScope:
        return
    if seen.error_kind in CHANCE:
        assert 0.90 <= seen.rate <= 0.99, seen
    else:
        assert seen.rate == 1.0, seen


def test_three_broken_instruments_are_found():
    """One moves the global random state, one states no error, one depends on the split."""
    from gnomon.core.reading import Reading
    from gnomon.core.registry import Cost, Instrument
    from gnomon.core.source import Source

    def made(function):
        function.__doc__ = "Broken.  Shapes: value ()."
        return Instrument(function, "landscape", (), ("end",), lambda subject: 1.0, None, 1, 1, lambda subject: Cost())

    def moves_state(subject, *, rng):
        return Reading("moves_state", float(torch.randn(())), "", error=1.0, error_kind="probe", n=5, source=Source("hutchinson1989"))

    def no_error(subject, *, rng):
        return Reading("no_error", float(torch.randn((), generator=rng)), "", error=0.0, error_kind="probe", n=5, source=Source("hutchinson1989"))

    def splits(subject, *, rng):
        return Reading("splits", float(sum(1 for _ in subject.batches())), "", error=1.0, error_kind="probe", n=5, source=Source("hutchinson1989"))

    subject = images()
    for function, check in [(moves_state, contract.check_untouched), (no_error, contract.check_reading), (splits, contract.check_split)]:
        with pytest.raises(contract.ContractBroken):
            check(made(function), subject)
