"""`gnomon check`: does a plug-in keep the contract of instruments, chapters and claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

BROKEN = 1


def check(
    plugin: Annotated[str | None, typer.Argument(help="The plug-in's package: its name if it is installed, or its folder.  [default: every installed plug-in]")] = None,
    draws: Annotated[int, typer.Option(help="Readings that test how often an error bar covers the truth.", min=50)] = 200,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say each check as it is done, and show tracebacks.")] = False,
) -> None:
    """Run the contract tests on a plug-in: same bits, subject untouched, split, precision, error bars that cover, bad input refused.

    Exit code 1 if something is broken.
    """
    from gnomon.core.environment import fixed_threads
    from gnomon.core.errors import InvalidInput
    from gnomon.studies.contract import check_plugin

    findings: list[Any] = []
    packages = [found(plugin)] if plugin is not None else installed()
    with fixed_threads(1):
        for root in packages:
            seen = []
            for finding in check_plugin(root, draws=draws):
                seen.append(finding)
                if verbose:
                    typer.echo(f"{finding.name} · {finding.check} on {finding.network}: {finding.outcome}", err=True)
            if not seen:
                raise InvalidInput(f"{root!r} holds nothing to check: it has neither instruments/, examination/ nor claims/ with something in them.")
            findings += seen
    if json:
        from dataclasses import asdict

        from gnomon.run.store import dumps

        typer.echo(dumps([asdict(finding) for finding in findings]), nl=False)
    else:
        typer.echo(summary(packages, findings))
    if any(finding.outcome == "broken" for finding in findings):
        raise typer.Exit(BROKEN)


def found(plugin: str) -> str:
    """The importable name of a plug-in given by name or folder.  Raises: InvalidInput where there is no such package."""
    from gnomon.core import plugins

    path = Path(plugin)
    if path.is_dir() and (path.resolve() / "__init__.py").is_file():
        sys.path.insert(0, str(path.resolve().parent))
        return path.resolve().name
    if path.is_dir():
        raise_no_package(path)
    plugins.folders(plugin)
    return plugin


def raise_no_package(path: Path) -> None:
    """Say which folder is the package.  Raises: InvalidInput."""
    from gnomon.core.errors import InvalidInput

    inside = sorted(child.name for child in path.iterdir() if (child / "__init__.py").is_file())
    advice = f"Did you mean {path / inside[0]}?" if inside else "Give the folder that holds __init__.py and instruments/."
    raise InvalidInput(f"{path} is no Python package: it has no __init__.py. {advice}")


def installed() -> list[str]:
    """The installed plug-ins.  Raises: InvalidInput where there are none."""
    from gnomon.core import plugins
    from gnomon.core.errors import InvalidInput

    packages = [root for root in plugins.roots() if root != "gnomon"]
    if not packages:
        raise InvalidInput(f"No plug-in is installed (entry point group {plugins.GROUP!r}). Give a package's folder: gnomon check ./my_package")
    return packages


def summary(packages: list[str], findings: list[Any]) -> str:
    """A line for each thing that was checked, the broken rules under it, and a count."""
    lines = []
    for name in dict.fromkeys(finding.name for finding in findings):
        mine = [finding for finding in findings if finding.name == name]
        broken, kept = [f for f in mine if f.outcome == "broken"], [f for f in mine if f.outcome == "kept"]
        lines.append(
            f"{name}: " + (f"{len(broken)} of {len(broken) + len(kept)} checks broken" if broken else f"keeps the contract, {len(kept)} checks" if kept else "not checked")
        )
        lines += [f"  {finding.check} on {finding.network}: {finding.why}" for finding in broken]
        lines += [f"  {finding.check} on {finding.network}: out of scope, {finding.why}" for finding in mine if finding.outcome == "out of scope"]
    bad = sum(finding.outcome == "broken" for finding in findings)
    lines += ["", f"{', '.join(packages)}: {'the contract is kept' if not bad else f'{bad} broken'}"]
    return "\n".join(lines)
