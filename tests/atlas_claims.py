"""A plug-in with claims of every kind and the documents of their runs: what the atlas's tests build from."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import sys

import claim_plugin
import numpy as np

from gnomon.core import catalogue
from gnomon.core.judge import Verdict, judge
from gnomon.core.reading import Axis, Reading
from gnomon.core.registry import TOPICS

PACKAGE = "atlas_plugin"

CLAIM = '''r"""{statement}"""

from dataclasses import dataclass

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.source import Source


@dataclass(frozen=True)
class Settings:
    """The sizes of the experiment."""

    depth: int
    width: int
    slope: float = 0.0


def predict(s: Settings) -> float:
    """Twice the ratio of depth to width."""
    return 2.0 * s.depth / s.width  # to first order


def measure(s: Settings, *, rng: object) -> float:
    """One replicate & its <error>."""
    return 2.0 * s.depth / s.width


CLAIM = Claim(
    version=2, entry="{entry}", source=Source("{source}", "section 3"), relation="{relation}", expected="{expected}", because="{because}",
    tolerance=Tolerance(lambda s: 0.1, because="the next order, $(l/n)^2$"), predict=predict, measure=measure,
    scales=dict(smoke=Settings(4, 32), standard=Settings(16, 256), paper=Settings(64, 1024)), sabotage=Sabotage("a linear network grows as $2(l-1)/n$", slope=1.0),
)
'''

FORMULA = "At criticality the vertex of a ReLU network grows as $5(l-1)/n$.\n\n$\\frac{V}{n K^2} = \\left(1 + \\frac{5}{n}\\right)^{l-1} - 1$\n\nIt is the first correction to the Gaussian limit, and holds while $l \\ll n$."


def scalar(value, error=0.01, predicted=0.5, name="four_point_vertex", unit="", n=10, **fields):
    draws = value + error * np.sqrt(n) * np.linspace(-1, 1, n) / np.linspace(-1, 1, n).std(ddof=1)
    return Reading.predicted(name, predicted, unit=unit, **fields), Reading.of_samples(name, draws, unit=unit, error_kind="seed")


def series(axis, predicted, factor, error=0.02, name="correlation", unit=""):
    predicted = np.asarray(predicted, dtype=float)
    axes = axis if isinstance(axis, tuple) else (axis,)
    wobble = np.linspace(-1, 1, 8).reshape(-1, *[1] * predicted.ndim)
    draws = predicted * factor + error * wobble
    return Reading.predicted(name, predicted, unit=unit, axes=axes), Reading.of_samples(name, draws, unit=unit, error_kind="seed", axes=axes)


@functools.cache
def kinds():
    """(slug, statement, entry, relation, expected, readings, keyword arguments of the judge, or a Verdict)."""
    depth = Axis("depth", tuple(float(k) for k in range(1, 13)))
    width = Axis("width", (16.0, 32.0, 64.0, 128.0, 256.0), scale="log")
    layers = Axis("layer", ("conv1", "conv2", "conv3", "fc1", "fc2"))
    square = (Axis("layer", tuple(float(k) for k in range(6))), Axis("input angle", tuple(float(k) for k in range(9)), "rad"))
    off = np.where(np.arange(12) > 9, 1.5, 1.0)
    grid = np.outer(np.arange(1, 7), np.cos(np.linspace(0, 1, 9)))
    mixed = np.ones((6, 9))
    mixed[4:, 7:] = 1.3
    return [
        ("effective", "vertex_growth", FORMULA, "B1", "equal", "holds", scalar(0.503), {"tolerance": 0.05}),
        ("dynamics", "ou_covariance", "The stationary variance of SGD is $\\eta/(2 B \\lambda)$.", "D1", "equal", "fails", scalar(0.9, unit="loss"), {"tolerance": 0.05}),
        ("kernels", "few_replicates", "The tangent kernel of a wide network stays put.", "B3", "equal", "holds", scalar(0.53, error=0.03), {"tolerance": 0.05}),
        ("kernels", "depth_decay", "Correlations decay with depth as $e^{-l/\\xi}$.", "B4", "equal", "holds", series(depth, np.exp(-np.arange(12) / 6.0), off), {"tolerance": 0.05}),
        ("effective", "layer_norms", "Every layer has the variance that the recursion gives.", "B1", "equal", "holds",
         series(layers, [1.0, 0.5, 1.0, 0.5, 2.0], np.array([1, 1, 1, 2.0, 1])), {"tolerance": 0.1}),
        ("kernels", "rate_in_width", "Kernels of finite networks approach the limit at rate $1/n$.", "B3", "exponent", "holds",
         (Reading.predicted("slope", -1.0, unit=""), series(width, 8.0 / np.array([16, 32, 64, 128, 256.0]), 1.0, error=1e-3)[1]), {"tolerance": 0.2}),
        ("generalization", "certificate", "The PAC-Bayes certificate covers the true error.", "C2", "at_most", "holds", scalar(0.083, predicted=0.19, error=0.003), {"tolerance": 0.0}),
        ("landscape", "angle_map", "The kernel's dependence on angle and layer is that of the arc-cosine recursion.", "E1", "equal", "holds", series(square, grid, mixed), {"tolerance": 0.2}),
        ("robustness", "empty_bound", "The bound on the attack is below one.", "H5", "equal", "vacuous", scalar(0.5), {"tolerance": 0.4}),
        ("approximation", "outside", "Pieces of $k$ tents are $2^k$.", "F2", "equal", "holds", scalar(0.5), Verdict("out_of_scope", "the activation is smooth, and has no pieces")),
        ("graphs", "broken", "Message passing finds two communities.", "A3", "equal", "holds", (None, None), Verdict("error", "ValueError: the graph is empty")),
    ]  # fmt: skip


def document(listed, spec, *, scale="standard", code=None, at="2026-01-01T10:00:00"):
    topic, _, statement, entry, relation, expected, (predicted, measured), judging = spec
    verdict = judging if isinstance(judging, Verdict) else judge(predicted, measured, relation=relation, **judging)
    wrong = None if measured is None else measured.replace(value=measured.value * 3, samples=None, error=0.01, n=8)
    return {
        "schema": "gnomon/run/1", "claim": listed, "topic": topic, "statement": statement.partition("\n\n")[0], "explanation": statement.partition("\n\n")[2], "formula": None,
        "entry": entry, "version": 2, "scale": scale, "seed": 0, "settings": {"depth": 16, "width": 256, "slope": 0.0}, "source": {"key": "roberts2022", "where": "section 3"},
        "because": "the step is too large for the limit" if expected != "holds" else "", "tolerance_because": "the next order, $(l/n)^2$", "expected": expected,
        "predicted": predicted and predicted.to_json(), "measured": measured and measured.to_json(), **verdict.to_json(),
        "sabotage": {"because": "a linear network grows as $2(l-1)/n$", "changes": {"slope": 1.0}, "measured": wrong and wrong.to_json(), "verdict": "fails",
                     "why": "the interval of the gap lies outside the tolerance", "moved_tolerances": 4.2},
        "code": code, "as_expected": verdict.outcome == expected, "environment": {"gnomon": "0.1.0", "code": "0" * 16, "torch": "2.13.0", "threads": 1, "device": "cpu"},
        "run": {"predicted_at": at, "measured_at": at, "seconds": 4.2, "peak_bytes": 310000000, "host": "here"},
    }  # fmt: skip


def write_claim(root, spec, text=None):
    """The file of a claim in the plug-in that stands in a folder; its text from the kind, if not given."""
    topic, slug, *rest = spec
    if text is None:
        statement, entry, relation, expected, *_ = rest
        because = "" if expected == "holds" else "the step is too large for the limit"
        text = CLAIM.format(statement=statement, entry=entry, relation=relation, expected=expected, because=because, source="roberts2022")
    claim_plugin.make(root, {f"{topic}/{slug}": text}, name=PACKAGE)
    return root / PACKAGE / "claims" / topic / f"{slug}.py"


def make(root, count=None, *, run=True):
    """A plug-in with one claim of each kind, or `count` of them in turn, and its results; returns the folder of results."""
    specs = kinds() if count is None else [(TOPICS[k % len(TOPICS)], f"claim_{k:03d}", *kinds()[k % len(kinds())][2:]) for k in range(count)]
    results = root / "results"
    results.mkdir(exist_ok=True)
    for spec in specs:
        path = write_claim(root, spec)
        name = f"{spec[0]}/{spec[1].replace('_', '-')}"
        if run:
            put(results / f"{name}.json", document(name, spec, code=code_of(path)))
    return results


def code_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def known(root, monkeypatch):
    """Let this process find the plug-in's claims, and no others, until the test ends."""
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(catalogue, "roots", lambda: (PACKAGE,))
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0].startswith(PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
