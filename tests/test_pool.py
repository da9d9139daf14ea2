"""Pools: the same bits from this process, from processes and from Ray; workers that die; clusters that do not answer."""

import multiprocessing
import os
import signal
import socket
import time

import claim_plugin
import numpy as np
import pytest
import torch

from gnomon.core.catalogue import get_claim
from gnomon.core.errors import GnomonError, InvalidInput
from gnomon.run.claims import run_claims
from gnomon.run.pool import LocalPool, ProcessPool, Task
from gnomon.run.ray_pool import CLIENT, RayPool
from gnomon.run.store import dumps
from gnomon.theory.kernels import infinite_width, on_disk


def heavy(seed):
    """Sums whose bits depend on the number of threads, in torch and in numpy."""
    drawn = torch.randn(400, 400, generator=torch.Generator().manual_seed(seed))
    both = drawn @ drawn.T, drawn.numpy() @ drawn.numpy().T, np.linalg.eigvalsh(drawn.numpy().astype(float) @ drawn.numpy().T)
    return [float(part.sum()) for part in both] + [torch.get_num_threads()]


def dies_once(marker):
    """The worker's own end, the first time."""
    if not os.path.exists(marker):
        with open(marker, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def naps(seconds):
    time.sleep(seconds)
    return seconds


def raises():
    raise InvalidInput("not like this")


HEAVY = [Task(f"{__name__}:heavy", {"seed": seed}) for seed in range(3)]


def claims_on(pool, store):
    found = run_claims([get_claim(f"mathematics/{slug}") for slug in ("one", "two")], store=store, pool=pool)
    return {document["claim"]: dumps({key: value for key, value in document.items() if key != "run"}) for document in found}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    claim_plugin.make(tmp_path / "plugins", {"mathematics/one": claim_plugin.claim("one"), "mathematics/two": claim_plugin.claim("two")})
    monkeypatch.syspath_prepend(tmp_path / "plugins")


def test_processes_and_ray_give_the_bits_of_this_process(plugin, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    here, verdicts = dict(LocalPool().run(HEAVY)), claims_on(LocalPool(), tmp_path / "here")
    assert torch.get_num_threads() == 2, "put back"
    torch.set_num_threads(before)
    assert here[0][-1] == 1
    assert here == dict(ProcessPool(1).run(HEAVY)) == dict(ProcessPool(2).run(HEAVY))
    assert claims_on(ProcessPool(2), tmp_path / "processes") == verdicts
    pool = RayPool(jobs=2, retries=1)
    assert dict(pool.run(HEAVY)) == here
    assert claims_on(pool, tmp_path / "ray") == verdicts
    assert dict(pool.run([Task(f"{__name__}:dies_once", {"marker": str(tmp_path / "ray-marker")})])) == {0: "alive"}
    kernel, x = infinite_width(torch.nn.Linear(3, 2), bias_variance=0.1), torch.arange(30.0).reshape(10, 3)
    made = [on_disk(kernel, x, folder=tmp_path / name, tile=4, pool=given).run() for name, given in (("tiles-here", LocalPool()), ("tiles-ray", pool))]
    assert torch.equal(made[0].dense(), made[1].dense())
    with pytest.raises(GnomonError, match=r"died 2 times .* 1 of 1 tasks are undone"):
        list(pool.run([Task(f"{__name__}:dies")]))
    with pytest.raises(InvalidInput, match="not like this"):
        list(pool.run([Task(f"{__name__}:raises")]))


def test_a_client_of_ray_that_dies_is_begun_again():
    tasks = [Task(f"{__name__}:naps", {"seconds": seconds}) for seconds in (0, 0.5)]
    running = RayPool(retries=1).run(tasks)
    found = [next(running)]
    kill_the_client()
    assert [*found, *running] == [(0, 0), (1, 0.5)]
    running = RayPool(retries=0).run(tasks)
    next(running)
    kill_the_client()
    with pytest.raises(GnomonError, match=r"client died, or started no cluster, 1 times; 1 of 2 tasks are undone"):
        list(running)


def kill_the_client():
    (client,) = (child for child in multiprocessing.active_children() if child.name == CLIENT)
    client.kill()


def test_the_tasks_of_a_killed_process_run_again(tmp_path):
    tasks = [Task(f"{__name__}:dies_once", {"marker": str(tmp_path / "marker")}), HEAVY[0]]
    assert dict(ProcessPool(1).run(tasks)) == {0: "alive", 1: heavy_here(0)}
    with pytest.raises(GnomonError, match=r"died 1 times .* 1 of 1 tasks are undone"):
        list(ProcessPool(1, retries=0).run([Task(f"{__name__}:dies")]))


def heavy_here(seed):
    return dict(LocalPool().run([Task(f"{__name__}:heavy", {"seed": seed})]))[0]


@pytest.mark.parametrize(
    ("address", "says"), [("127.0.0.1", "takes host:port"), ("127.0.0.1:{closed}", "No Ray cluster answers"), ("127.0.0.1:{silent}", "does not answer as a Ray cluster")]
)
def test_an_address_where_no_cluster_answers_is_refused_soon(address, says):
    with socket.socket() as listening, socket.socket() as closed:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        closed.bind(("127.0.0.1", 0))
        where = address.format(silent=listening.getsockname()[1], closed=closed.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(InvalidInput, match=says):
            list(RayPool(where, patience=4).run(HEAVY))
        assert time.monotonic() - started < 10, "no hang"


def test_a_pool_that_is_left_ends_its_processes_at_once():
    started = time.monotonic()
    running = ProcessPool(2).run([HEAVY[0], Task("time:sleep", {"seconds": 600})])
    with pytest.raises(TypeError, match="sleep"):
        list(running)
    running = ProcessPool(2).run([Task(f"{__name__}:naps", {"seconds": 0}), Task(f"{__name__}:naps", {"seconds": 600})])
    assert next(running) == (0, 0)
    running.close()
    assert time.monotonic() - started < 120
