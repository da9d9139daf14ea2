"""`gnomon atlas`: the reading list, its claims and their verdicts as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Option = typer.Option


def atlas(
    out: Annotated[Path, Option(help="The folder of the site: a new or empty one, or that of an older atlas, which is replaced.")] = Path("site"),
    store: Annotated[Path | None, Option(help="Where `gnomon claims run` keeps its verdicts.  [default: in the cache]")] = None,
    results: Annotated[Path | None, Option(help="A folder of committed verdicts.  [default: results/ of the checkout that gnomon runs from, if any]")] = None,
    json: Annotated[bool, Option("--json", help="Print what the atlas holds as JSON, alone, on standard output.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Build the atlas: a page for every entry of the reading list and for every claim, with its verdict; open index.html in a browser.

    The pages load nothing and run nothing. A claim shows its verdict at the largest scale that has one.
    """
    from gnomon.atlas.write import build_atlas
    from gnomon.core.environment import cache_folder
    from gnomon.core.errors import InvalidInput
    from gnomon.run.store import dumps

    for option, given in (("--store", store), ("--results", results)):
        if given is not None and not given.is_dir():
            raise InvalidInput(f"There is no folder {given}; give the one that holds the verdicts: {option} FOLDER")
    folders = [folder for folder in (results or committed(), store or cache_folder() / "store") if folder is not None]
    made = build_atlas(out, folders)
    typer.echo(dumps(made) if json else summary(made, out), nl=False)


def committed() -> Path | None:
    """`results/` of the checkout that gnomon is imported from, or None for an installed gnomon."""
    import gnomon

    root = Path(gnomon.__file__).resolve().parents[2]
    return root / "results" if (root / "pyproject.toml").is_file() and (root / "results").is_dir() else None


def summary(made: dict[str, Any], out: Path) -> str:
    """What was built, in three lines at most."""
    counts = [f"{count} {name.replace('-', ' ')}" for name, count in made["verdicts"].items() if count]
    lines = [f"{len(made['entries'])} entries · {len(made['claims'])} claims" + (f" ({', '.join(counts)})" if counts else "")]
    unexpected = [claim["claim"] for claim in made["claims"] if claim.get("as_expected") is False]
    if unexpected:
        lines.append(f"not as expected: {', '.join(unexpected[:5])}" + (f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""))
    if made["retired"]:
        lines.append(f"retired, no longer in the catalogue: {', '.join(made['retired'])}")
    return "\n".join([*lines, f"{out / 'index.html'}"]) + "\n"
