import math
import numpy as np
import pytest
from gnomon.core.judge import judge
from gnomon.core.reading import Axis, Reading
from gnomon.core.errors import InvalidInput

TRIALS = 20_000


def noise(kind, size, rng):
    if kind == "gaussian":
        return rng.standard_normal(size)
    if kind == "t3":
        return rng.standard_t(3, size)
    return rng.chisquare(30, size) - 30


def rate(kind, replicates, gap, tolerance, outcome="holds", trials=TRIALS):
    rng = np.random.default_rng(12345)
    draws = 10.0 + gap + noise(kind, (trials, replicates), rng)
    predicted = Reading.predicted("p", 10.0 * 1000, unit="")
    hits = 0
    for row in draws:
        measured = Reading.of_samples("m", row + 9990.0, unit="", error_kind="seed")
        hits += judge(predicted, measured, relation="equal", tolerance=tolerance).outcome == outcome
    return hits / trials
