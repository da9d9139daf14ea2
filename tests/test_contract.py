"""Every registered instrument keeps the contract, on a convolutional and on a token network; `make coverage` runs the whole grid."""

import pytest
import torch

from gnomon.core import contract, registry
from gnomon.core.errors import OutOfScope
from gnomon.studies.contract import NETWORKS, images, subject_for

INSTRUMENTS = registry.instruments()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", INSTRUMENTS)
@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, name, network):
    subject = subject_for(INSTRUMENTS[name], network)
    if subject is None:
        assert INSTRUMENTS[name].needs
        return
    try:
        check(INSTRUMENTS[name], subject)
    except OutOfScope as error:
        assert len(str(error)) > 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_stated_intervals_cover_the_truth(name, network, dtype):
    subject = subject_for(INSTRUMENTS[name], network, dtype)
    if subject is None:
        assert INSTRUMENTS[name].needs
        return
    try:
        contract.check_coverage(INSTRUMENTS[name], subject)
    except OutOfScope as error:
        assert len(str(error)) > 20


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
