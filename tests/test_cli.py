import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gnomon
from gnomon.cli import cache as cache_command
from gnomon.cli.examine import command_line
from gnomon.cli.main import application, commands
from gnomon.core.errors import CannotWrite

NET = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, width=8, classes=3, depth=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, classes))
    def forward(self, x):
        return self.layers(x)

def make_model(width=8, classes=3):
    print("hello from the factory")
    return Small(width, classes)

def sequential():
    return nn.Sequential(nn.Linear(4, 3))

def make_data(n=60, classes=3, where=None):
    x = torch.randn(n, 4)
    y = torch.arange(n) % classes
    if where == "nan":
        x[7, 2] = float("nan")
    if where == "labels":
        y[3] = 9
    if where == "wide":
        x = torch.randn(n, 5)
    if where == "real":
        y = torch.randn(n, classes)
    if where == "empty":
        x, y = x[:0], y[:0]
    return (x, y), (x[:10], y[:10])

def variance(output, targets):
    return output.var() + 0 * targets.sum()

def weighted():
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))

def broken():
    raise ValueError("no GPU today")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with a network's file and weights, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path / "cache"))
    Path("net.py").write_text(NET)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    save_file({f"layers.{key}": value for key, value in layers.state_dict().items()}, "w.safetensors")
    torch.save({"state_dict": {f"model.layers.{key}": 2 * value for key, value in layers.state_dict().items()}}, "w.ckpt")
    return tmp_path


class Seen:
    """What a stand-in for `examine` was called with, and the report that it returns."""

    subject = None
    document: ClassVar = {"schema": "gnomon/report/1", "plan": {"seed": 5, "threads": 1, "entries": []}, "rows": [], "sources": {"schuirmann1987": {}}}

    def __call__(self, subject, **options):
        self.subject, self.options = subject, options
        options["progress"](0.5, "half way")
        print("a library that prints")
        return self

    def save(self, page, data):
        page.write_text("new page")
        data.write_text(json.dumps(self.document))
        return [(page, 8), (data, 8)]


@pytest.fixture
def seen(monkeypatch):
    stand_in = Seen()
    monkeypatch.setattr("gnomon.examination.run.examine", stand_in)
    monkeypatch.setattr("gnomon.report.text.summary", lambda document, paths: f"the summary of {', '.join(str(path) for path, _ in paths)}\n")
    return stand_in


def invoke(*words):
    return CliRunner().invoke(application(), [str(word) for word in words])


OWN = ("examine", "net.py:make_model", "--data", "net.py:make_data")


def run(*words, **environment):
    environment["PYTHONPATH"] = str(Path(gnomon.__file__).parents[1])
    return subprocess.run([sys.executable, "-m", "gnomon.cli.main", *map(str, words)], capture_output=True, text=True, env=os.environ | environment, check=False)


def test_help_is_quick_and_does_not_import_torch():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        shown = run("--help")
        times.append(time.perf_counter() - start)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in commands())
    assert min(times) < 0.5
    check = "import sys; from gnomon.cli.main import application; application()(['examine', '--help'], standalone_mode=False); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0


def test_options_reach_the_subject(place, seen):
    words = [*OWN, "--weights", "w.ckpt", "--initial", "w.safetensors", "--optimizer", "nesterov", "--lr", "0.1", "--momentum", "0.9", "--weight-decay", "0.001"]
    words += [
        "--batch-size",
        "16",
        "--init",
        "xavier",
        "--init",
        "layers.0=0.5",
        "--examples",
        "40",
        "--seed",
        "3",
        "--only",
        "landscape,dynamics",
        "--budget",
        "5m",
        "--threads",
        "1",
    ]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    training = seen.subject.training
    assert (training.optimizer, training.lr, training.momentum, training.weight_decay, training.batch_size) == ("nesterov", 0.1, 0.9, 0.001, 16)
    assert torch.equal(seen.subject.state["layers.0.weight"], 2 * seen.subject.initial["layers.0.weight"])
    assert seen.subject.init == ("xavier", "layers.0=0.5")
    assert (len(seen.subject.train), seen.subject.train.population, len(seen.subject.test)) == (40, 60, 10)
    assert (seen.subject.classes, seen.subject.loss.name, seen.subject.name) == (3, "cross_entropy", "Small")
    assert seen.subject.make().layers[0].out_features == 8
    assert {key: seen.options[key] for key in ("budget", "seed", "threads", "only", "data_name")} == {
        "budget": "5m",
        "seed": 3,
        "threads": 1,
        "only": "landscape,dynamics",
        "data_name": "net.py:make_data",
    }
    assert seen.options["again"].startswith("gnomon examine net.py:make_model --weights w.ckpt ")
    assert invoke(*seen.options["again"].split()[1:]).exit_code == 0
    assert result.stdout == "the summary of report.html, report.json\n"
    assert Path("report.html").read_text() == "new page"


@pytest.mark.parametrize(
    ("loss", "name", "data"),
    [(None, "mse", "net.py:make_data(where='real')"), ("net.py:weighted()", "CrossEntropyLoss", "net.py:make_data"), ("mse", "mse", "net.py:make_data(where='real')")],
)
def test_losses(place, seen, loss, name, data):
    result = invoke("examine", "net.py:make_model", "--data", data, *(["--loss", loss] if loss else []))
    assert result.exit_code == 0, result.output
    assert seen.subject.loss.name == name


def test_a_sequential_is_called_after_its_factory(place, seen):
    assert invoke("examine", "net.py:sequential", "--data", "net.py:make_data").exit_code == 0
    assert seen.subject.name == "sequential"


def test_adam_s_state(place, seen):
    sys.path.insert(0, str(place))
    torch.manual_seed(0)
    layers = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))})
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.02, betas=(0.8, 0.9))
    layers["layers"](torch.randn(5, 4)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), "opt.pt")
    result = invoke(*OWN, "--optimizer-state", "opt.pt", "--batch-size", "8")
    assert result.exit_code == 0, result.output
    training = seen.subject.training
    assert (training.optimizer, training.lr, training.momentum, training.batch_size, training.steps) == ("adam", 0.02, 0.8, 8, 1)
    assert torch.equal(training.second_moment["layers.2.bias"], optimizer.state[layers["layers"][2].bias]["exp_avg_sq"])
    assert invoke(*OWN, "--optimizer-state", "w.ckpt").exit_code == 2


def test_json_stands_alone_on_stdout(place, seen):
    result = invoke(*OWN, "--json")
    assert json.loads(result.stdout) == seen.document
    assert "hello from the factory" in result.stderr
    assert not Path("report.html").exists(), "with --json no file is written that was not asked for"
    result = invoke(*OWN, "--json", "--out", "r.html", "-q")
    assert json.loads(result.stdout) == json.loads(Path("r.json").read_text())
    assert invoke(*OWN, "-q").stdout == ""


def test_a_plan_brings_its_seed_and_threads(place, seen):
    assert invoke(*OWN).exit_code == 0
    assert invoke(*OWN, "--plan", "report.json", "--seed", "1").exit_code == 0
    assert (seen.options["seed"], seen.options["threads"], seen.options["plan"]) == (5, 1, seen.document)


BAD = {
    "a name": (["examine", "make_model", "--data", "digits"], "must name a factory"),
    "an unknown function": (["examine", "net.py:make_modle", "--data", "digits"], "Did you mean 'make_model'"),
    "a missing file": (["examine", "nett.py:make_model", "--data", "digits"], "Did you mean 'net.py'"),
    "a factory that raises": (["examine", "net.py:broken", "--data", "digits"], "ValueError: no GPU today (net.py, line"),
    "a factory of something else": (["examine", "net.py:weighted()", "--data", "net.py:make_data"], "no parameter with requires_grad"),
    "no data": (["examine", "net.py:make_model"], "--data digits"),
    "unknown data": (["examine", "net.py:make_model", "--data", "minst"], "Did you mean 'mnist'"),
    "options without a network": (["examine", "--lr", "0.1"], "--lr needs a network"),
    "shapes": (["examine", "net.py:make_model", "--data", "net.py:make_data(where='wide')"], "does not accept inputs of shape [(60, 5)]"),
    "nan in data": (["examine", "net.py:make_model", "--data", "net.py:make_data(where='nan')"], "train input 7 has a NaN"),
    "empty data": (["examine", "net.py:make_model", "--data", "net.py:make_data(where='empty')"], "data are empty"),
    "labels": (["examine", "net.py:make_model", "--data", "net.py:make_data(where='labels')"], "labels run from 0 to 9, but the network has 3 outputs"),
    "an unknown loss": ([*OWN, "--loss", "cross_entrpy"], "Did you mean 'cross_entropy'"),
    "a loss that is no mean": ([*OWN, "--loss", "net.py:variance"], "neither a weighted mean nor a sum"),
    "an unknown optimizer": ([*OWN, "--optimizer", "addam"], "Did you mean 'adam'"),
    "a negative lr": ([*OWN, "--lr", "-1"], "lr must lie in"),
    "other weights": (
        ["examine", "net.py:make_model(width=9)", "--data", "net.py:make_data", "--weights", "w.safetensors"],
        "'layers.0.weight' has shape (8, 4), the network has (9, 4)",
    ),
    "nan in weights": ([*OWN, "--weights", "nan.pt"], "NaN or infinite value in 'layers.0.bias'"),
    "pickled code": ([*OWN, "--weights", "whole.pt"], "runs no code"),
    "missing weights": ([*OWN, "--weights", "w.safetensor"], "Did you mean 'w.safetensors'"),
    "a budget": ([*OWN, "--budget", "soon"], "not a time"),
    "a device": ([*OWN, "--device", "cuda:7"], "There is no device 'cuda:7'"),
    "an unknown device": ([*OWN, "--device", "gpu"], "Unknown device 'gpu'"),
    "no examples": ([*OWN, "--examples", "0"], "--examples"),
    "a plan": ([*OWN, "--plan", "net.py"], "cannot be read as JSON"),
    "an unknown option": ([*OWN, "--weight", "w.pt"], "--weight"),
    "an unknown command": (["examin"], "examin"),
    "a folder": ([*OWN, "--out", "."], "is a folder"),
    "a missing folder": ([*OWN, "--out", "no/report.html"], "There is no folder no"),
    "json as the page": ([*OWN, "--out", "report.json"], "--out report.html"),
    "a read-only place": ([*OWN, "--out", "/proc/report.html"], "Cannot write in /proc"),
    "a full device": ([*OWN, "--out", "/dev/full"], "not a regular file"),
    "a read-only store": ([*OWN, "--store", "/proc/store"], "--store"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_the_work(place, seen, case):
    words, says = BAD[case]
    if "/proc" in str(words) and not Path("/proc").is_dir():
        pytest.skip("no /proc")
    torch.save({"layers.0.bias": torch.full((8,), torch.nan), "layers.0.weight": torch.ones(8, 4), "layers.2.weight": torch.ones(3, 8), "layers.2.bias": torch.ones(3)}, "nan.pt")
    torch.save(nn.Linear(1, 1), "whole.pt")
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert says in result.stderr, result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert seen.subject is None
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before, "nothing is written"


def test_an_old_report_stays_where_the_new_one_cannot_be_written(place, seen):
    Path("report.html").write_text("old page")
    Path("report.json").symlink_to("/dev/full")
    result = invoke(*OWN)
    assert (result.exit_code, Path("report.html").read_text()) == (2, "old page")
    assert seen.subject is None

    def fails(page, data):
        raise CannotWrite("Cannot write report.html: No space left on device.")

    Path("report.json").unlink()
    seen.save = fails
    result = invoke(*OWN)
    assert (result.exit_code, Path("report.html").read_text()) == (2, "old page")
    assert "No space left" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "run the same command again"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), 2, "7.45 GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."), 2, "4,096 MiB"),
        (ZeroDivisionError("oops"), 4, "please report it: ZeroDivisionError: oops"),
    ],
)
def test_errors_become_messages_and_exit_codes(place, monkeypatch, error, code, says):
    def examine(subject, **options):
        raise error

    monkeypatch.setattr("gnomon.examination.run.examine", examine)
    result = invoke(*OWN)
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert ("Traceback" in invoke(*OWN, "-v").stderr) == (code != 130)


def test_the_default_network_is_examined_without_arguments(place, seen):
    result = invoke("examine")
    assert result.exit_code == 0, result.output
    assert (seen.subject.name, seen.options["data_name"]) == ("DigitsCNN", "digits")
    assert "DigitsCNN · 11,066 parameters · digits, 1,437 examples" in result.stderr


def test_the_command_that_makes_a_report_again():
    options = {"data": "a b.npz", "init": ("kaiming", "x=1"), "lr": 0.1, "examples": None, "budget": "60s", "seed": 2, "threads": None}
    assert command_line("n.py:f('x')", options) == """gnomon examine 'n.py:f('"'"'x'"'"')' --data 'a b.npz' --init kaiming --init x=1 --lr 0.1 --seed 2"""


def test_the_cache_is_shown_and_cleared_and_nothing_else_is_touched(place, monkeypatch):
    folder = place / "cache"
    for path in ("data/mnist/a.gz", "store/runs/b.json", "data/precious.csv", "own.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(bytes(2**20))
    shown = invoke("cache")
    assert shown.stdout.splitlines()[0] == str(folder)
    assert shown.stdout.count("1.0 MiB") == 2
    assert invoke("cache", "--clear").exit_code == 0
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["own.txt", "precious.csv"]
    monkeypatch.delenv("GNOMON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "xdg"))
    for platform, end in (("linux", "xdg/gnomon"), ("darwin", "Library/Caches/gnomon"), ("win32", "gnomon/Cache")):
        monkeypatch.setattr("sys.platform", platform)
        from gnomon.core.environment import cache_folder

        assert cache_folder().as_posix().endswith(end)
    assert cache_command.size(place / "nowhere") == 0


def test_cite(place):
    Path("report.json").write_text(json.dumps(Seen.document))
    assert invoke("cite", "report.json").stdout.startswith("@article{schuirmann1987")
    assert invoke("cite", "schuirmann1987").stdout == invoke("cite", "report.json").stdout
    assert invoke("cite").stdout.count("@") >= 1
    assert "schuirmann1987" in invoke("cite", "schuirman1987").stderr


def numbers(path):
    document = json.loads(Path(path).read_text())
    document.pop("run")
    return document


def test_a_report_end_to_end_has_the_same_bits_whatever_the_environment_says(place):
    """Through the real command, in processes of their own: two reports by one plan, at one and two threads in the environment."""
    words = [*OWN, "--weights", "w.safetensors", "--lr", "0.1", "--batch-size", "8", "--budget", "3s", "-q"]
    first = run(*words, OMP_NUM_THREADS="1")
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    assert Path("report.html").read_text().lstrip().lower().startswith("<!doctype html")
    second = run(*words, "--plan", "report.json", "--out", "again.html", "--store", "other", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    assert second.returncode == 0, second.stderr
    assert numbers("report.json") == numbers("again.json")
    assert numbers("report.json")["rows"]
    np.testing.assert_equal(numbers("report.json")["plan"], numbers("again.json")["plan"])


def test_ctrl_c_keeps_what_is_measured_and_the_same_command_goes_on(place):
    words = [sys.executable, "-m", "gnomon.cli.main", "examine", "net.py:make_model", "--data", "net.py:make_data(n=3000)", "--lr", "0.1", "--budget", "6s", "--store", "kept"]
    environment = os.environ | {"PYTHONPATH": str(Path(gnomon.__file__).parents[1])}
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    pieces: list[Path] = []
    while first.poll() is None and len(pieces) < 2:
        time.sleep(0.02)
        pieces = list(Path("kept").rglob("*.json"))
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, (first.returncode, pieces, err)
    assert out == ""
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert not Path("report.html").exists()
    plan = next(json.loads(path.read_text()) for path in Path("kept").rglob("plan.json"))
    assert subprocess.run(words, capture_output=True, env=environment, check=False).returncode == 0
    assert json.loads(Path("report.json").read_text())["plan"] == plan, "the plan that was cut off is taken up"


def test_the_schema_is_printed():
    assert json.loads(invoke("schema").stdout)["title"]
    assert json.loads(invoke("schema", "compare").stdout)["$id"] == "gnomon/compare/1"
