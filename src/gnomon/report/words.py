"""How the report says things: verdicts, values, sizes; shared by the page, the pictures and the terminal."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnomon.core.reading import Reading, format_number, format_value

VERDICTS: Mapping[str | None, str] = {
    "holds": "holds", "fails": "fails", "inconclusive": "inconclusive", "vacuous": "vacuous", "out_of_scope": "out of scope", "error": "error", None: "measured",
}  # fmt: skip
"""A verdict as the page names it; None is a row without prediction."""

PLAIN: Mapping[str | None, str] = {
    "holds": "agrees", "fails": "does not agree", "inconclusive": "not decided", "vacuous": "the prediction says nothing here",
    "out_of_scope": "outside what the theory covers", "error": "could not be judged", None: "",
}  # fmt: skip
"""What stands for the chapter's own words where it gives none."""

ERRORS: Mapping[str, str] = {
    "exact": "exact", "probe": "standard error over random probes", "sample": "standard error over examples", "seed": "standard error over re-drawn networks or seeds",
    "fit": "standard error of a fit", "bound": "half-width that contains the value", "truncation": "size of the first term left out",
}  # fmt: skip

_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of text, with which a name could rearrange the words around it."""

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def superscript(power: int) -> str:
    """`⁻⁵` for -5."""
    return str(power).translate(_SUPERSCRIPT)


def reading_of(data: Mapping[str, Any] | None) -> Reading | None:
    """The Reading of a row's JSON, without its replicates; None where there is none or its numbers are stored beside the report."""
    if data is None or isinstance(data.get("value"), Mapping):
        return None
    kept = {key: entry for key, entry in data.items() if key != "samples"}
    if data.get("n") is None and isinstance(data.get("samples"), Sequence):
        kept["n"] = len(data["samples"])
    return Reading.from_json(kept)


def sign(relation: str, reading: Reading) -> str:
    """The sign before a prediction: `≤` or `≥` where it is one-sided."""
    if relation == "at_least":
        return "≥ "
    return "≤ " if relation == "at_most" or reading.role == "bound" else ""


def value_text(reading: Reading, *, prefix: str = "", count: bool = True, unit: bool = True) -> str:
    """A Reading in a cell: `17.3 ± 1.4`, or `0.93 to 1.52 (8 values)` for an array."""
    if reading.value.size == 1:
        text = format_value(float(reading), float(reading.error.reshape(())), reading.ends(), reading.unit if unit else "")
        return text if text.startswith((">", "<")) else prefix + text
    if reading.value.size == 0:
        return "no values"
    least, most = float(reading.value.min()), float(reading.value.max())
    low, high = "0" if 0 < least < 1e-9 * most else short(least), short(most)
    span = low if low == high else f"{low} to {high}"
    return f"{prefix}{span}" + (f" {reading.unit}" if reading.unit and unit else "") + (f" ({reading.value.size:,} values)" if count else "")


def element_text(reading: Reading, index: int) -> str:
    """One element of an array with its error; `index` counts through the flattened array."""
    assert reading.interval is not None
    low, high = float(reading.interval[0].flat[index]), float(reading.interval[1].flat[index])
    return format_value(float(reading.value.flat[index]), float(reading.error.flat[index]), (low, high))


def numbers_text(value: Any, prefix: str = "") -> str:
    """A number, or the range of nested lists of numbers, as in a row's gap and tolerance; empty for None."""
    flat = flatten(value)
    if not flat:
        return ""
    rounding = 1e-12 * max(map(abs, flat))
    flat = [number if abs(number) > rounding else 0.0 for number in flat]
    low, high = short(min(flat)), short(max(flat))
    return f"{prefix}{low}" if low == high else f"{prefix}{low} to {prefix}{high}"


def flatten(value: Any) -> list[float]:
    """The finite numbers of nested lists, in order."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for entry in value for number in flatten(entry)]
    return [float(value)] if isinstance(value, (int, float)) and math.isfinite(value) else []


def element_names(reading: Reading, relation: str, count: int, predicted: Reading | None = None) -> list[str]:
    """What each of `count` judged elements is called: `conv1`, `depth 4`, `2 to 4` for a step between neighbours.

    `order` and `monotone` judge the steps between neighbours, the former once sorted by the predicted values.
    """
    names = index_names(reading)
    if relation in ("order", "monotone") and count == len(names) - 1:
        if relation == "order" and predicted is not None and predicted.value.shape == reading.value.shape:
            names = [names[i] for i in np.argsort(predicted.value.ravel(), kind="stable")]
        return [f"{a} to {b}" for a, b in itertools.pairwise(names)]
    return names if count == len(names) else [f"element {i}" for i in range(count)]


def index_names(reading: Reading) -> list[str]:
    """A name for each element of the flattened array, from its axes."""
    shape = reading.value.shape
    along: list[list[str]] = []
    for i, length in enumerate(shape):
        if not reading.axes:
            along.append([str(k) for k in range(length)])
        else:
            along.append([entry if isinstance(entry, str) else plain_number(float(entry)) for entry in reading.axes[i].values])
    return [" · ".join(along[d][k] for d, k in enumerate(place)) for place in np.ndindex(*shape)]


def plain_number(value: float) -> str:
    """A number on an axis: whole ones in full, others to four digits."""
    return f"{int(value):,}" if math.isfinite(value) and value == int(value) and abs(value) < 1e7 else short(value, 4)


def short(value: float, digits: int = 3) -> str:
    """A number to a few digits, without zeros at the end that say nothing."""
    head, e, power = format_number(value, digits).partition("e")
    return (head.rstrip("0").rstrip(".") if "." in head else head) + e + power


def typeset(text: str) -> str:
    """A formatted number with a true minus and powers of ten: `-1.20e-05` becomes `−1.20 × 10⁻⁵`."""

    def power(match: re.Match[str]) -> str:
        return f"{match.group(1)} × 10{superscript(int(match.group(2)))}"

    text = re.sub(r"(\d)e([+-]\d+)", power, text)
    return re.sub(r"(?<![\w.)])-(?=[\d∞])", "−", text)


def verdict_words(row: Mapping[str, Any]) -> str:
    """A row's verdict in the chapter's words, or in plain ones."""
    return row.get("words") or PLAIN.get(row.get("verdict"), "")


def examined(subject: Mapping[str, Any], of: str = " training examples") -> str:
    """`Fashion-MNIST, examined on 1,024 of 60,000`."""
    train, data = subject["train"], subject.get("data")
    used, all_of_them = int(train["examples"]), int(train["population"])
    how_many = f"all {used:,}" if used >= all_of_them else f"{used:,} of {all_of_them:,}"
    return (f"{data}, examined" if data else "examined") + f" on {how_many}{of}"


def trained(training: Mapping[str, Any]) -> str:
    """`SGD, learning rate 0.1, momentum 0.9, batch size 128`; empty where nothing is known."""
    names = {"sgd": "SGD", "nesterov": "SGD with Nesterov momentum", "adam": "Adam", "adamw": "AdamW"}
    parts = [names.get(str(training.get("optimizer")), str(training["optimizer"]))] if training.get("optimizer") else []
    for key, word in (("lr", "learning rate"), ("momentum", "momentum"), ("weight_decay", "weight decay"), ("batch_size", "batch size"), ("steps", "steps")):
        if training.get(key):
            parts.append(f"{word} {plain_number(float(training[key]))}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`0.4 s`, `48 s`, `4 min 10 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """`212 KiB`, `1.9 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 9.95 or unit == "B" else f"{count:.1f} {unit}"


def capital(text: str) -> str:
    """A title with a capital letter at its start, unless it starts with the name of a layer or a symbol."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def shorten(text: str, length: int) -> str:
    """A name cut in its middle, so that both ends can still be told apart."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}" if length > 2 else text[:length]


def clean(text: Any, keep: str = "") -> str:
    """Text without control characters: no escape sequence of a name reaches a terminal, no stray byte breaks XML."""
    return "".join(c if c in keep else " " if c in "\n\t\r" else "" if unicodedata.category(c) in ("Cc", "Cs", "Cn") or c in _TURNS else c for c in str(text))
