"""A Reading: a number or an array with its unit, its error and what the error means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.source import Source

ErrorKind = Literal["exact", "probe", "sample", "seed", "fit", "bound", "truncation"]
Role = Literal["predicted", "measured", "bound"]
Array = np.ndarray[Any, np.dtype[np.float64]]

CHANCE: frozenset[str] = frozenset({"probe", "sample", "seed", "fit"})


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of an array: what runs along it.  `values` are numbers or names."""

    name: str
    values: tuple[float, ...] | tuple[str, ...]
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A predicted or measured quantity.

    Shapes: `value` any; `error` that of `value`; `interval` a pair of arrays shaped like `value`; `samples` (n, *value), replicates first;
    `axes` one a dimension of `value`.
    Error: a standard error for chance (`probe | sample | seed | fit`), a half-width for `bound | truncation`, rounding included, 0 for `exact`.
    `interval` is the 95 % one (Student's t for chance); an end may be infinite.
    Raises: InvalidInput where shapes disagree or a number is NaN.
    """

    name: str
    value: Any
    unit: str
    error: Any = 0.0
    error_kind: ErrorKind = "exact"
    n: int | None = None
    interval: tuple[Any, Any] | None = None
    axes: tuple[Axis, ...] = ()
    samples: Any = None
    role: Role = "measured"
    source: Source | None = None
    assumes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(field: str, new: Any) -> None:
            object.__setattr__(self, field, new)

        if self.error_kind not in get_args(ErrorKind):
            raise unknown("kind of error", self.error_kind, get_args(ErrorKind))
        put("value", _array(self.value))
        put("error", np.broadcast_to(_array(self.error), self.value.shape).copy())
        if self.samples is not None:
            put("samples", _array(self.samples))
            if self.samples.shape[1:] != self.value.shape:
                raise InvalidInput(f"{self.name}: samples of shape {self.samples.shape} do not fit a value of shape {self.value.shape}; replicates come first.")
            if self.n is None:
                put("n", len(self.samples))
        if self.axes and tuple(len(axis.values) for axis in self.axes) != self.value.shape:
            raise InvalidInput(f"{self.name}: axes of lengths {[len(a.values) for a in self.axes]} do not fit a value of shape {self.value.shape}.")
        if self.interval is None:
            half = self._half_width(0.95)
            put("interval", (self.value - half, self.value + half))
        else:
            low, high = (np.broadcast_to(_array(end), self.value.shape).copy() for end in self.interval)
            put("interval", (low, high))
        if np.isnan(self.value).any() or np.isnan(self.error).any():
            raise InvalidInput(f"{self.name}: the value or its error is NaN. Look for a division by zero or an overflow in what produced it.")

    def _half_width(self, level: float) -> Array:
        if self.error_kind not in CHANCE:
            return self.error
        degrees = self.n - 1 if self.n and self.n > 1 else math.inf
        return self.error * (stats.t.ppf(0.5 + level / 2, degrees) if math.isfinite(degrees) else stats.norm.ppf(0.5 + level / 2))

    @classmethod
    def of_samples(cls, name: str, samples: Any, *, unit: str, error_kind: ErrorKind = "sample", **fields: Any) -> Reading:
        """The mean of replicates with its standard error s / sqrt(n) and Student's t interval.

        Shapes: samples (n, *value), n >= 2.   Raises: InvalidInput for fewer than two replicates.
        """
        drawn = _array(samples)
        if len(drawn) < 2:
            raise InvalidInput(f"{name}: a standard error needs at least two replicates, not {len(drawn)}.")
        error = drawn.std(axis=0, ddof=1) / math.sqrt(len(drawn))
        return cls(name, drawn.mean(axis=0), unit, error=error, error_kind=error_kind, n=len(drawn), samples=drawn, **fields)

    @classmethod
    def predicted(cls, name: str, value: Any, *, unit: str, **fields: Any) -> Reading:
        """A prediction: a Reading whose role is `predicted`."""
        return cls(name, value, unit, role="predicted", **fields)

    def replace(self, **changes: Any) -> Reading:
        """A copy with some fields changed; the interval is made anew unless it is given."""
        if "interval" not in changes and changes.keys() & {"value", "error", "error_kind", "n"}:
            changes["interval"] = None
        return dataclasses.replace(self, **changes)

    def __float__(self) -> float:
        if self.value.size != 1:
            raise InvalidInput(f"{self.name} is an array of shape {self.value.shape}, not one number; use .value.")
        return float(self.value.reshape(()))

    def __str__(self) -> str:
        if self.value.size != 1:
            return f"{self.name}: {self.value.size} values from {self.value.min():.3g} to {self.value.max():.3g} {self.unit}".rstrip()
        return format_value(float(self), float(self.error.reshape(())), self.ends(), self.unit)

    def ends(self) -> tuple[float, float]:
        """The 95 % interval of a single number."""
        assert self.interval is not None
        return float(self.interval[0].reshape(())), float(self.interval[1].reshape(()))

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; an open end of the interval is null, defaults are left out."""
        out: dict[str, Any] = {"name": self.name, "value": jsonable(self.value), "unit": self.unit, "error": jsonable(self.error), "error_kind": self.error_kind, "role": self.role}
        assert self.interval is not None
        out["interval"] = [jsonable(self.interval[0]), jsonable(self.interval[1])]
        if self.n is not None:
            out["n"] = int(self.n)
        if self.axes:
            out["axes"] = [{"name": a.name, "values": list(a.values), "unit": a.unit, "scale": a.scale} for a in self.axes]
        if self.samples is not None:
            out["samples"] = jsonable(self.samples)
        if self.source is not None:
            out["source"] = {"key": self.source.key, "where": self.source.where}
        for field in ("assumes", "skipped"):
            if getattr(self, field):
                out[field] = list(getattr(self, field))
        if self.details:
            out["details"] = {key: jsonable(entry) for key, entry in self.details.items()}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        """The Reading that `to_json` wrote."""
        low, high = data["interval"]
        return cls(
            data["name"], unjson(data["value"]), data["unit"], error=unjson(data["error"]), error_kind=data["error_kind"], n=data.get("n"), role=data["role"],
            interval=(unjson(low, -math.inf), unjson(high, math.inf)),
            axes=tuple(Axis(a["name"], tuple(a["values"]), a["unit"], a["scale"]) for a in data.get("axes", ())),
            samples=None if data.get("samples") is None else unjson(data["samples"]),
            source=Source(**data["source"]) if data.get("source") else None,
            assumes=tuple(data.get("assumes", ())), skipped=tuple(data.get("skipped", ())), details=dict(data.get("details", {})),
        )  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Draw the Reading on matplotlib Axes (made if not given) and return them."""
        from gnomon.report.figure import describe
        from gnomon.report.svg import draw_matplotlib

        return draw_matplotlib(describe(self), ax)

    def _repr_html_(self) -> str:
        from gnomon.report.html import reading_html

        return reading_html(self)


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def jsonable(value: Any) -> Any:
    """Numbers and arrays as JSON: floats stay exact, non-finite ones become null."""
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(entry) for entry in value]
    return value


def unjson(value: Any, missing: float = math.inf) -> Array:
    """The array that `jsonable` wrote, null read as `missing`."""

    def fill(entry: Any) -> Any:
        return [fill(e) for e in entry] if isinstance(entry, list) else missing if entry is None else entry

    return np.asarray(fill(value), dtype=np.float64)


def format_number(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits, with thousands separators where it is large."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "nan"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= size < 7:
        return f"{round(value, digits - 1 - size):,.{max(digits - 1 - size, 0)}f}"
    return f"{value:.{digits - 1}e}"


def format_value(value: float, error: float, interval: tuple[float, float], unit: str = "") -> str:
    """`17.3 ± 1.4`, `1,900 [1,600, 2,200]` where the interval is lopsided, `> 300` where it is open, `9` where it is exact."""
    tail = f" {unit}" if unit else ""
    low, high = interval
    if math.isinf(high) and not math.isinf(low):
        return f"> {format_number(low)}{tail}"
    if math.isinf(low) and not math.isinf(high):
        return f"< {format_number(high)}{tail}"
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{format_number(value)}{tail}" + ("" if math.isfinite(error) else ", not determined")
    half = (high - low) / 2
    if half > 0 and abs((high + low) / 2 - value) > 0.1 * half:
        return f"{format_number(value)} [{format_number(low)}, {format_number(high)}]{tail}"
    if error <= 1e-12 * abs(value):
        return _shortest(value) + tail
    if value == 0:
        return f"0 ± {format_number(error, 2)}{tail}"
    size_error = math.floor(math.log10(float(f"{error:.1e}")))
    size_value = math.floor(math.log10(abs(value)))
    if max(size_value, size_error) >= 7 or max(size_value, size_error) < -4:
        return f"{value:.2e} ± {error:.1e}{tail}"
    decimals = min(max(1 - size_error, 0), 12)
    if error < 1e-6 * abs(value):
        return f"{format_number(value, 6)} ± {error:.0e}{tail}"
    return f"{round(value, 1 - size_error) + 0.0:,.{decimals}f} ± {round(error, 1 - size_error):,.{decimals}f}{tail}"


def _shortest(value: float) -> str:
    """An exact number: every digit of a whole one, else four significant digits without zeros that say nothing."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    text = format_number(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
