"""The command line: every module of this package that does not begin with an underscore is a command, or a group of them: the module's namesake, a function or a Typer."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Annotated

import typer

import gnomon.cli
from gnomon.cli._guard import guarded


def commands() -> list[str]:
    """The names of the commands, from the files beside this one."""
    return sorted(found.name for found in pkgutil.iter_modules(gnomon.cli.__path__) if not found.name.startswith("_") and found.name != "main")


def show_version(wanted: bool) -> None:
    """Print the version and leave, if wanted."""
    if wanted:
        from gnomon.core.environment import version

        typer.echo(f"gnomon {version()}")
        raise typer.Exit


def application() -> typer.Typer:
    """The typer application with every command.  Nothing heavy is imported before a command runs."""
    app = typer.Typer(name="gnomon", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.callback()
    def gnomon_(show: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and leave.")] = False) -> None:
        """Deep-learning theory on your own network: what theory predicts beside what is measured, each with an error bar."""

    for name in commands():
        found = getattr(importlib.import_module(f"gnomon.cli.{name}"), name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(guarded(found))
    return app


def run() -> None:
    """The entry point of the `gnomon` command."""
    try:
        application()()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
