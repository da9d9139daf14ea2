"""`gnomon claims`: list, show and run the claims of the literature."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gnomon.cli._guard import guarded

NOT_AS_EXPECTED, UNDECIDED, ERROR = 1, 3, 4

Option, Argument = typer.Option, typer.Argument
Topic = Annotated[str | None, Option(help="Only those of one topic.")]
Entry = Annotated[str | None, Option(help="Only those of one entry of the reading list, such as B1.")]
Json = Annotated[bool, Option("--json", help="Print JSON, alone.")]
Store = Annotated[Path | None, Option(help="Where verdicts and replicates are kept.  [default: in the cache]")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Say what is done, and show tracebacks.")]

claims = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and run claims: results of the literature, each with a prediction, a measurement and a verdict.")


@claims.command("list")
@guarded
def list_claims(
    ids: Annotated[list[str] | None, Argument(help="Ids, or patterns such as 'effective/*'.")] = None, topic: Topic = None, entry: Entry = None, json: Json = False
) -> None:
    """List the claims: id and statement, by topic."""
    found = chosen(ids, topic=topic, entry=entry)
    if json:
        from gnomon.run.claims import facts_of
        from gnomon.run.store import dumps

        typer.echo(dumps([facts_of(listed) for listed in found]), nl=False)
        return
    width = max((len(listed.id) for listed in found), default=0)
    for listed in found:
        typer.echo(f"{listed.id.ljust(width)}  {listed.summary}")


@claims.command("show")
@guarded
def show(
    claim: Annotated[str, Argument(help="A claim's id, such as effective/relu-four-point-growth.")], store: Store = None, json: Json = False, verbose: Verbose = False
) -> None:
    """Show a claim: its statement, source, settings and tolerances, and the last verdict on it."""
    from gnomon.cli._verdict import shown
    from gnomon.core.catalogue import get_claim
    from gnomon.core.environment import cache_folder
    from gnomon.run.claims import facts_of
    from gnomon.run.verdicts import stored_claims

    listed = get_claim(claim)
    facts = facts_of(listed)
    if facts["error"]:
        listed.load()
    verdicts = [document for document in stored_claims(store or cache_folder() / "store") if document["claim"] == claim]
    if json:
        from gnomon.run.store import dumps

        typer.echo(dumps(facts | {"verdicts": verdicts}), nl=False)
    else:
        typer.echo(shown(listed, facts, verdicts))


@claims.command("run")
@guarded
def run(
    ids: Annotated[list[str] | None, Argument(help="Ids, or patterns such as 'effective/*'.")] = None,
    every: Annotated[bool, Option("--all", help="Run every claim.")] = False,
    topic: Topic = None,
    entry: Entry = None,
    scale: Annotated[str, Option(help="smoke (seconds a claim), standard (minutes) or paper (the paper's own setting).")] = "smoke",
    seed: Annotated[int, Option(help="Seed of every random number.")] = 0,
    jobs: Annotated[int, Option(help="Replicates at once, one thread each.", min=1)] = 1,
    pool: Annotated[str, Option(help="process (this machine) or ray.")] = "process",
    address: Annotated[str | None, Option(help="The Ray cluster, host:port, ray://host:port or auto.  [default: a local one]")] = None,
    store: Store = None,
    results: Annotated[Path | None, Option(help="Write each verdict there too, as <topic>/<slug>.json.")] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run claims and judge them.  Each replicate is kept as it ends: Ctrl-C, and the same command goes on.

    Exit codes: 0 all as expected, 1 a verdict that is not, 3 only undecided ones besides, 4 a claim that raised.
    """
    from gnomon.cli._output import check_folder, progress
    from gnomon.cli._verdict import lines
    from gnomon.core.environment import cache_folder
    from gnomon.core.errors import InvalidInput
    from gnomon.run.store import dumps
    from gnomon.run.verdicts import results_path, write_verdict

    if not (ids or every or topic or entry):
        raise InvalidInput("Say which claims: ids or patterns, --topic, --entry or --all. `gnomon claims list` lists them.")
    found = chosen(ids, topic=topic, entry=entry)
    made = make_pool(pool, address, jobs)
    folder = store or cache_folder() / "store"
    check_folder(folder, "choose another place with --store, or with GNOMON_CACHE")
    if results is not None:
        check_folder(results, "choose another place with --results")
    documents, out = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr), progress(quiet=quiet or json, verbose=verbose) as tell:
        for document in verdicts(found, strict=bool(ids), scale=scale, seed=seed, pool=made, store=folder, progress=tell):
            documents.append(document)
            if results is not None:
                # these are made to be published, and the name of the machine is nobody's business
                write_verdict(results_path(results, document["claim"]), document | {"run": document["run"] | {"host": ""}})
            if not json and not quiet:
                # on a terminal through stderr, where the bar makes room for it
                print(lines(document, named=len(found) > 1), file=sys.stderr if out.isatty() and sys.stderr.isatty() else out, flush=True)
    if json:
        typer.echo(dumps(documents), nl=False)
    raise typer.Exit(exit_code(documents))


def chosen(ids: list[str] | None, *, topic: str | None, entry: str | None) -> list[Any]:
    """The claims that ids and patterns name, or all, of a topic and an entry.  Raises: InvalidInput where one names nothing."""
    from fnmatch import fnmatchcase

    from gnomon.core.catalogue import catalogue, get_claim
    from gnomon.core.errors import InvalidInput, unknown
    from gnomon.core.registry import TOPICS

    if topic is not None and topic not in TOPICS:
        raise unknown("topic", topic, TOPICS)
    known = catalogue()
    names: list[str] = []
    for text in ids or ["*"]:
        matching = [name for name in known if fnmatchcase(name, text)]
        if not matching and ids and any(mark in text for mark in "*?["):
            raise InvalidInput(f"No claim matches {text!r}. `gnomon claims list` lists them.")
        names += matching or ([get_claim(text).id] if text != "*" else [])
    found = [known[name] for name in dict.fromkeys(names) if topic in (None, known[name].topic)]
    if entry is not None:
        entries = {listed.id: listed.entry for listed in found}
        if entry not in entries.values():
            raise unknown("entry", entry, {text for text in entries.values() if text})
        found = [listed for listed in found if entries[listed.id] == entry]
    return found


def make_pool(name: str, address: str | None, jobs: int) -> Any:
    """The pool by name.  Raises: InvalidInput for an unknown one, or an address without Ray."""
    from gnomon.core.errors import InvalidInput, unknown
    from gnomon.run.pool import LocalPool, ProcessPool

    if name == "ray":
        from gnomon.run.ray_pool import RayPool

        return RayPool(address, jobs)
    if name != "process":
        raise unknown("pool", name, ("process", "ray"))
    if address is not None:
        raise InvalidInput("--address is that of a Ray cluster: add --pool ray.")
    return LocalPool() if jobs == 1 else ProcessPool(jobs)


def verdicts(found: list[Any], *, strict: bool, scale: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Run the claims; those without settings for the scale are left out, and said to be, unless they were asked for by name."""
    from gnomon.run.claims import facts_of, run_claims

    if not strict:
        lacking = [listed.id for listed in found if (facts := facts_of(listed))["scales"] and scale not in facts["scales"]]
        found = [listed for listed in found if listed.id not in lacking]
        if lacking:
            typer.echo(f"left out, without settings for {scale!r}: {', '.join(lacking)}", err=True)
    yield from run_claims(found, scale=scale, **options)


def exit_code(documents: list[dict[str, Any]]) -> int:
    """0 if all came out as expected, else 4 where one raised, 1 where one did not come out as expected, 3 where some are only undecided."""
    wrong = [(document["verdict"], (document["sabotage"] or {}).get("verdict"), document["expected"]) for document in documents if not document["as_expected"]]
    if any("error" in pair[:2] for pair in wrong):
        return ERROR
    undecided = [verdict == "inconclusive" or (verdict == expected and sabotage == "inconclusive") for verdict, sabotage, expected in wrong]
    return 0 if not wrong else UNDECIDED if all(undecided) else NOT_AS_EXPECTED
