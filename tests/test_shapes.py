"""The annotated shapes are checked while the tests run, and no annotation goes unread; outside the tests nothing is checked."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import random
import subprocess
import sys
import typing
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import gnomon.numerics
import gnomon.theory
from gnomon.core import rng as chance
from gnomon.numerics.lanczos import Eigen, lanczos_eigenvalues
from gnomon.numerics.operators import Hessian
from gnomon.numerics.trace import hutchinson
from gnomon.theory.activations import Moments

MODULES = [found.name for room in (gnomon.numerics, gnomon.theory) for found in pkgutil.iter_modules(room.__path__, f"{room.__name__}.")]


def test_a_matrix_where_a_vector_is_asked_for():
    subject = networks.mlp_regression()
    v = torch.ones(subject.dimension, dtype=subject.dtype)
    assert Hessian(subject)(v).shape == v.shape
    with pytest.raises(TypeCheckError, match="parameter 'v'"):
        Hessian(subject)(v[:, None])


def test_integers_where_numbers_are_asked_for():
    subject = networks.mlp_regression()
    with pytest.raises(TypeCheckError, match="parameter 'v'"):
        Hessian(subject)(torch.ones(subject.dimension, dtype=torch.int64))


def test_sizes_must_agree():
    two, three = torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(TypeCheckError, match="bounds"):
        Eigen(two, torch.zeros(5, 2), three, 4, two > 0, two)
    with pytest.raises(TypeCheckError, match="fourth"):
        Moments(np.zeros(3), np.zeros(2), np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3))


def test_an_operator_that_gives_a_matrix():
    with pytest.raises(TypeCheckError, match="right"):
        hutchinson(lambda v: v[:, None] * v, 4, rng=chance.generator(0), probes=2, like=torch.zeros(()))


def test_checks_leave_the_global_random_state_alone():
    subject = networks.mlp_regression()
    before = random.getstate()
    lanczos_eigenvalues(Hessian(subject), subject.dimension, rng=chance.generator(0), like=torch.zeros((), dtype=subject.dtype))
    assert random.getstate() == before


@pytest.mark.parametrize("name", MODULES)
def test_every_annotation_can_be_read(name):
    """One that cannot be evaluated would be passed over in silence."""
    module = importlib.import_module(name)
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
            written = [node.returns, *(argument.annotation for argument in arguments)]
        else:
            written = [node.annotation] if isinstance(node, ast.AnnAssign) else []
        for annotation in filter(None, written):
            holder = type("Holder", (), {"__annotations__": {"it": ast.unparse(annotation)}})
            typing.get_type_hints(holder, vars(module))


def test_nothing_is_checked_outside_the_tests():
    code = "import sys, gnomon.numerics.operators, gnomon.numerics.lanczos as l; sys.exit('beartype' in sys.modules or hasattr(l.Eigen.__init__, '__wrapped__'))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(Path(gnomon.__file__).parent.parent)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
