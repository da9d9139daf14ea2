"""A spectrum, or a test of SGD, that was killed goes on in another process, to the same bits; a full disk is said and loses nothing."""

import dataclasses
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
from gnomon.core.training import Training
from gnomon.instruments import landscape, sde
from gnomon.numerics import checkpoint as kept
from gnomon.numerics import walks
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


KILLED = """
import os, signal, sys
from gnomon.core import rng as chance
from gnomon.instruments import sde
from gnomon.numerics import checkpoint, walks
from test_checkpoint import trained

checkpoint.SHARE, made, update = float("inf"), [0], walks._Runs.update

def counted(self, gradient):
    made[0] += 1
    if made[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, gradient)

walks._Runs.update = counted
sde.svag(trained(), rng=chance.generator(0), checkpoint=sys.argv[1], runs=6, steps=20, levels=(2, 4), sampling=sys.argv[3])
"""


def trained():
    return dataclasses.replace(network(), training=Training(optimizer="sgd", lr=0.1, batch_size=7, momentum=0.5))


def test_a_killed_test_of_the_equation_goes_on_in_another_process_to_the_same_bits(tmp_path, monkeypatch):
    """Killed after 20, 40 and 80 steps at three levels, at the fifth of the 20 on epochs of nine batches: what was done is not done again."""
    place, made, update, killed, sampling = tmp_path / "state", [0], walks._Runs.update, 145, "epochs"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", KILLED, str(place), str(killed), sampling], env=environment, check=False).returncode == -signal.SIGKILL

    def counted(self, gradient):
        made[0] += 1
        return update(self, gradient)

    monkeypatch.setattr(walks._Runs, "update", counted)
    settings = {"rng": chance.generator(0), "runs": 6, "steps": 20, "levels": (2, 4), "sampling": sampling}
    with pytest.raises(InvalidInput, match="another computation"):
        sde.svag(trained(), checkpoint=place, **settings | {"steps": 21})
    made[0] = 0
    found = sde.svag(trained(), checkpoint=place, **settings)
    rest, made[0] = made[0], 0
    assert found.to_json() == sde.svag(trained(), **settings).to_json()
    assert rest == made[0] - (killed - 1)
    assert not list(tmp_path.iterdir())


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
