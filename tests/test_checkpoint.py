"""A spectrum that was killed goes on in another process, to the same bits; a full disk is said and loses nothing."""

import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import CannotWrite, InvalidInput
from gnomon.core.files import read_tensors, write_tensors
from gnomon.core.subject import Subject
from gnomon.instruments import landscape
from gnomon.numerics import checkpoint as kept
from gnomon.numerics.checkpoint import Checkpoint
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import Hessian

SCRIPT = """
import os, signal, sys
from gnomon.core import rng as chance
from gnomon.instruments import landscape
from gnomon.numerics import checkpoint
from gnomon.numerics.operators import Hessian
from test_checkpoint import network

checkpoint.SHARE = float("inf")
made, product = [0], Hessian.__call__

def counted(self, v):
    made[0] += 1
    if made[0] == 35:
        os.kill(os.getpid(), signal.SIGKILL)
    return product(self, v)

Hessian.__call__ = counted
getattr(landscape, sys.argv[1])(network(), rng=chance.generator(0), checkpoint=sys.argv[2])
"""


def network():
    with chance.scoped(chance.generator(0)):
        model = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 10))
        data = torch.randn(64, 10), torch.randint(10, (64,))
    return Subject.freeze(model, "cross_entropy", data)


@pytest.mark.parametrize("name", ["hessian_eigenvalues", "spectral_density"])
def test_a_killed_spectrum_goes_on_in_another_process_to_the_same_bits(tmp_path, name, monkeypatch):
    place, made, product, measure = tmp_path / "state.safetensors", [0], Hessian.__call__, getattr(landscape, name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", SCRIPT, name, str(place)], env=environment, check=False).returncode == -signal.SIGKILL

    def counted(self, v):
        made[0] += 1
        return product(self, v)

    monkeypatch.setattr(Hessian, "__call__", counted)
    found = measure(network(), rng=chance.generator(0), checkpoint=place)
    rest, made[0] = made[0], 0
    assert found.to_json() == measure(network(), rng=chance.generator(0)).to_json()
    assert rest == made[0] - 34
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_products_that_ran_out_are_added_to(tmp_path):
    """More products go on from where they ended, as if they had been allowed from the start; what has converged leaves no file."""
    place, rng = tmp_path / "state", chance.generator(0)
    short = landscape.hessian_eigenvalues(network(), rng=rng, products=20, checkpoint=place)
    assert not all(short.details["converged"])
    assert place.exists()
    long = landscape.hessian_eigenvalues(network(), rng=rng, products=128, checkpoint=place)
    assert long.to_json() == landscape.hessian_eigenvalues(network(), rng=rng, products=128).to_json()
    assert not place.exists()


def test_the_state_of_something_else_is_refused(tmp_path):
    place = tmp_path / "state"
    landscape.hessian_eigenvalues(network(), rng=chance.generator(0), products=20, checkpoint=place)
    moved = network().at({key: value + 1 for key, value in network().state.items()})
    with pytest.raises(InvalidInput, match="another computation"):
        landscape.hessian_eigenvalues(moved, rng=chance.generator(0), checkpoint=place)
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(InvalidInput, match="cannot be read"):
        landscape.hessian_eigenvalues(network(), rng=chance.generator(0), checkpoint=place)
    with pytest.raises(CannotWrite, match="Cannot write"):
        landscape.hessian_eigenvalues(network(), rng=chance.generator(0), checkpoint="/dev/full/state")


def test_a_disk_that_fills_up_is_said_and_loses_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kept, "SHARE", float("inf"))
    a, place, writes = torch.diag(torch.arange(1.0, 101.0)), tmp_path / "state", [0]

    def filling(*given):
        writes[0] += 1
        if 5 <= writes[0] < 20:
            raise CannotWrite("No space left on device")
        write_tensors(*given)

    common = {"k": 3, "rng": chance.generator(0), "like": a, "max_products": 30, "tolerance": 1e-7}
    monkeypatch.setattr(kept, "write_tensors", filling)
    with caplog.at_level(logging.WARNING):
        found = lanczos_eigenvalues(lambda v: a @ v, 100, checkpoint=Checkpoint(place, "a"), **common)
    assert "goes on" in caplog.text
    assert torch.equal(found.values, lanczos_eigenvalues(lambda v: a @ v, 100, **common).values)
    assert int(read_tensors(place)[0]["counts"][1]) == 30
