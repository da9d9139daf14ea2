"""What is registered: instruments, chapters and claims, found by walking the rooms' packages and the plug-ins' ones."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, get_args

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.plugins import folders, roots
from gnomon.core.reading import Reading

Need = Literal["initial", "make", "optimizer", "adaptive", "labels", "test", "ensemble", "factors"]
Where = Literal["end", "initial"]
TOPICS = (
    "kernels", "effective", "generalization", "dynamics", "landscape", "approximation", "factorization", "transport", "information",
    "representation", "robustness", "physics", "graphs", "mathematics",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an instrument costs on a subject: full passes of loss and gradient over its training examples, and bytes at the peak beyond one gradient's."""

    gradients: float = 0.0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Instrument:
    """A measurement: a function of a Subject that returns a Reading, with what it needs, what it costs and its small exact truth."""

    function: Callable[..., Reading]
    topic: str
    needs: tuple[Need, ...]
    at: tuple[Where, ...]
    truth: Callable[..., Any] | None
    knob: str | None
    smallest: int
    largest: int
    cost: Callable[..., Cost]
    shares: str | None = None
    essential: bool = False
    warm: Callable[..., Cost] | None = None

    @property
    def name(self) -> str:
        """The function's name, which is the Reading's too."""
        return self.function.__name__

    def __call__(self, subject: Any, **settings: Any) -> Reading:
        """Measure a subject."""
        return self.function(subject, **settings)


_INSTRUMENTS: dict[str, Instrument] = {}


def instrument(
    *, topic: str, needs: tuple[Need, ...] = (), at: tuple[Where, ...] = ("end",), truth: Callable[..., Any] | None = None,
    knob: str | None = None, smallest: int = 8, largest: int = 1024, cost: Callable[..., Cost],
    shares: str | None = None, essential: bool = False, warm: Callable[..., Cost] | None = None,
) -> Callable[[Callable[..., Reading]], Callable[..., Reading]]:  # fmt: skip
    """Register a function of a Subject as an instrument; the function stays as it was.

    `knob` is its one setting that buys accuracy, moved in powers of two from `smallest` to `largest`; `truth(subject)` the exact answer on a small
    subject, for the contract tests; `cost(subject, knob=value)` what it takes.  `shares` names an instrument whose work this one reuses through
    `subject.once`: a plan gives both the same examples and knob, and `cost` says what is added.
    `essential` ones, which a chapter rests on, are the last to be skipped when the budget is short.  `warm(subject, knob=value)` is what it takes in a training that is
    watched, where it starts from what it found a little earlier (`subject.kept`); such a reading shares nothing.
    Raises: InvalidInput for an unknown topic or need, or a second instrument of the same name.
    """
    if topic not in TOPICS:
        raise unknown("topic", topic, TOPICS)
    for need in needs:
        if need not in get_args(Need):
            raise unknown("need", need, get_args(Need))

    def register(function: Callable[..., Reading]) -> Callable[..., Reading]:
        name, parameters = function.__name__, inspect.signature(function).parameters
        if "rng" not in parameters or (knob and knob not in parameters):
            raise InvalidInput(f"Instrument {name!r} must take `rng`" + (f" and its knob {knob!r}" if knob else "") + " as keyword arguments.")
        known = _INSTRUMENTS.get(name)
        if known and known.function.__module__ != function.__module__:
            raise InvalidInput(f"Two instruments are called {name!r}: in {known.function.__module__} and in {function.__module__}. Rename one.")
        _INSTRUMENTS[name] = Instrument(function, topic, needs, at, truth, knob, smallest, largest, cost, shares, essential, warm)
        return function

    return register


def modules(room: str) -> Iterator[ModuleType]:
    """Import every module of a room (`instruments`, `examination`, ...) in gnomon and its plug-ins.  Raises: InvalidInput where a plug-in does not import."""
    for root in roots():
        yield from modules_of(root, room)


def modules_of(root: str, room: str) -> list[ModuleType]:
    """Import every module of a room of one package; none where it has no such room.  Raises: InvalidInput where a plug-in does not import, with the reason."""
    if not any((place / room).is_dir() for place in folders(root)):
        return []
    try:
        package = importlib.import_module(f"{root}.{room}")
        return [importlib.import_module(found.name) for found in sorted(pkgutil.walk_packages(package.__path__, f"{root}.{room}."), key=lambda m: m.name)]
    except InvalidInput:
        raise
    except Exception as error:
        if root == "gnomon":
            raise
        raise InvalidInput(f"The plug-in {root!r} does not import: {type(error).__name__}: {error}. Mend it, or uninstall it.") from error


@functools.cache
def _load_instruments() -> None:
    for _ in modules("instruments"):
        pass


def instruments() -> dict[str, Instrument]:
    """Every registered instrument by name, sorted."""
    _load_instruments()
    return dict(sorted(_INSTRUMENTS.items()))


def registered(root: str) -> list[Instrument]:
    """The instruments of one package that has been imported, by name."""
    return [found for _, found in sorted(_INSTRUMENTS.items()) if found.function.__module__.partition(".")[0] == root]


def get_instrument(name: str) -> Instrument:
    """One instrument.  Raises: InvalidInput for an unknown name, with the nearest one."""
    known = instruments()
    if name not in known:
        raise unknown("instrument", name, known)
    return known[name]


def chapters() -> dict[str, ModuleType]:
    """Every chapter of `examine` by name (its file's): the modules of `examination` that have a function `chapter`, in reading order.

    Raises: InvalidInput for two chapters of one name.
    """
    found: dict[str, ModuleType] = {}
    for module in modules("examination"):
        name = module.__name__.rpartition(".")[2]
        if not hasattr(module, "chapter"):
            continue
        if name in found:
            raise InvalidInput(
                f"Two chapters are called {name!r}: {found[name].__name__} and {module.__name__}. Rename the file of one; READS = ({name!r},) says which topic it reads."
            )
        found[name] = module
    return dict(sorted(found.items(), key=lambda item: (getattr(item[1], "ORDER", 100), item[0])))


def reads(chapter: ModuleType) -> tuple[str, ...]:
    """The topics whose instruments a chapter reads: its READS, or the topic that its file is named after."""
    return getattr(chapter, "READS", (chapter.__name__.rpartition(".")[2],))
