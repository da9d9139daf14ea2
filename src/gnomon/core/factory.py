"""Factories by name: `net.py:make_model(width=64)` and `package.module:make_model`, called with literal arguments; nothing is evaluated."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gnomon.core.errors import InvalidInput, suggest, unknown


@dataclasses.dataclass(frozen=True)
class Call:
    """A name with literal arguments, such as `make_model(width=64)`; `called` says whether there were parentheses."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    called: bool = False

    @classmethod
    def parse(cls, text: str) -> Call:
        """Read `name` or `name(literals)`.  Raises: InvalidInput for anything else."""
        name, bracket, rest = text.strip().partition("(")
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name.strip()):
            raise InvalidInput(f"{text!r} is not a name, or a name with arguments such as make_model(width=64).")
        if not bracket:
            return cls(name)
        try:
            node = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("not a call")
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except (ValueError, SyntaxError, TypeError) as error:
            raise InvalidInput(f"The arguments of {text!r} cannot be read; only literals are allowed: numbers, 'strings' in quotes, True, None, lists, tuples, dicts.") from error
        return cls(name.strip(), args, kwargs, True)


@dataclasses.dataclass(frozen=True)
class Factory:
    """A function of the user's, found by file or module, with the arguments it is called with.  Calling it makes the thing anew."""

    text: str
    function: Callable[..., Any]
    call: Call

    def __call__(self) -> Any:
        """What the factory makes.  Raises: InvalidInput with the factory's own error."""
        try:
            return self.function(*self.call.args, **self.call.kwargs)
        except Exception as error:
            raise InvalidInput(f"The factory {self.text} raised {fault(error)}") from error
        except SystemExit as error:
            raise InvalidInput(f"The factory {self.text} ended the program (exit code {error.code}); it must return what it makes.") from error


def is_factory(text: str) -> bool:
    """Whether a text looks like `file.py:name` or `package.module:name`, with or without arguments."""
    head = text.partition("(")[0]
    return ":" in head and re.fullmatch(r"[A-Za-z_][\w.]*", head.rpartition(":")[2]) is not None


def find(text: str, *, what: str = "model") -> Factory:
    """The factory that a text names.

    Raises: InvalidInput where the text has another form, the file or module is missing or raises on import (its own error is shown), or it has no such
    function (the nearest one is named).
    """
    head, bracket, rest = text.strip().partition("(")
    place, colon, name = head.rpartition(":")
    if not colon or not is_factory(text):
        raise InvalidInput(f"The {what} {text!r} must name a factory, file.py:function or package.module:function, such as net.py:make_{what}(width=64).{_offers(text.strip())}")
    call = Call.parse(name + bracket + rest)
    module = _file(Path(place)) if place.endswith(".py") else _module(place, what)
    found: Any = module
    for part in call.name.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")] if hasattr(found, "__dict__") else []
            raise unknown("function", call.name, own) if own else InvalidInput(f"{place} has no function {call.name!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise InvalidInput(f"{head} is a {type(found).__name__}, not a function that makes the {what}.")
    return Factory(text.strip(), found, call)


def fault(error: BaseException) -> str:
    """A user's error as one line: its type, its message, and the line of their file that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__ and "importlib" not in frame.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {error}{where}"


def _offers(text: str) -> str:
    """What a file that was named without a function defines."""
    path = Path(text)
    if path.suffix != ".py" or not path.is_file():
        return ""
    try:
        names = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
    except (SyntaxError, UnicodeDecodeError):
        return ""
    return f" {path} defines: {', '.join(names)}." if names else ""


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        near = sorted(entry.name for entry in folder.glob("*.py")) if folder.is_dir() else []
        raise InvalidInput(f"There is no file {path}." + (f" {suggest(path.name, near)}" if near else ""))
    return _load_file(path.resolve())


@functools.cache
def _load_file(path: Path) -> ModuleType:
    """A Python file as a module, loaded once, its folder importable, so that files beside it are found."""
    name = path.stem if path.stem.isidentifier() and importlib.util.find_spec(path.stem) is None else f"_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise InvalidInput(f"The file {path.name} does not import: {fault(error)}") from error
    return module


def _module(name: str, what: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InvalidInput(f"There is no module {name!r} to take the {what} from. For a file, write its name with .py: file.py:function.") from error
        raise InvalidInput(f"The module {name!r} does not import: {fault(error)}") from error
