"""Axes of pictures: where a value falls between two pixels, and which ticks are round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from gnomon.report import words


@dataclasses.dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from [low, high] to pixels [start, end]; values outside are drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False, pad: float = 0.06, decades: float = 9.0) -> Scale:
        """The scale that shows every finite value, with room at both ends; a logarithmic one shows at most `decades` powers of ten."""
        finite = np.array([v for v in values if math.isfinite(v) and (v > 0 or not log)], dtype=np.float64)
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (1.0, 10.0) if log else (0.0, 1.0)
        if log:
            low = max(low, high / 10**decades)
            room = max(math.log10(high / low) * pad, 0.08)
            return cls(low / 10**room, high * 10**room, start, end, True)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        room = (high - low) * pad or abs(high) * 0.1 or 1.0
        if zero and low == high:
            return cls(0.0, 1.0, start, end)
        return cls(low if zero and low == 0 else low - room, high if zero and high == 0 else high + room, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value, at the edge where it lies outside."""
        if math.isnan(value):
            return self.start
        if self.log:
            share = (math.log(max(value, 1e-300)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low)) if value < math.inf else 1.0
        else:
            share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else float(value > 0)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def shows(self, value: float) -> bool:
        """Whether a value lies within the ends."""
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round values with their labels."""
        found = self._decades(count) if self.log and self.high / self.low >= 8 else self._steps(count)
        return found if len(found) > 1 or count > 8 else self.ticks(count + 2)

    def _steps(self, count: int) -> list[tuple[float, str]]:
        rough = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
        biggest = max(abs(self.low), abs(self.high))
        if biggest >= 1e6 or biggest < 1e-3:
            digits = max(math.floor(math.log10(biggest)) - math.floor(math.log10(step) + 1e-9), 0)
            return [(k * step, "0" if k == 0 else words.typeset(f"{k * step:.{digits}e}")) for k in range(first, last + 1)]
        return [(k * step, words.typeset(f"{k * step + 0.0:,.{decimals}f}")) for k in range(first, last + 1)]

    def _decades(self, count: int) -> list[tuple[float, str]]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(math.ceil((last - first + 1) / max(count, 1)), 1)
        within = (1, 2, 5) if last - first < 2 else (1,)
        found = [(m * 10.0**k) for k in range(first - 1, last + 1) if (k - first) % stride == 0 or k < first for m in within]
        plain = self.low >= 5e-4 and self.high <= 2e5
        return [(v, self._label(v, plain)) for v in found if self.shows(v)]

    @staticmethod
    def _label(value: float, plain: bool) -> str:
        power = math.floor(math.log10(value) + 1e-9)
        if plain:
            return words.plain_number(float(f"{value:.3g}")) if value >= 1 else f"{value:.{-power}f}"
        lead = round(value / 10.0**power)
        return ("" if lead == 1 else f"{lead} × ") + "10" + words.superscript(power)
