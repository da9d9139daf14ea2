"""`gnomon examine`: the theory report on a network."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

Option, Argument = typer.Option, typer.Argument
Factory = Annotated[
    str | None, Argument(help="The network: file.py:make_model(width=64) or package.module:make_model. Without it, a small network is trained on digits and examined.")
]


def examine(
    model: Factory = None,
    weights: Annotated[Path | None, Option(help="Trained weights: .safetensors, or .pt/.pth/.ckpt (tensors only; pickled code is never run).")] = None,
    initial: Annotated[Path | None, Option(help="The weights at initialisation, for what compares with it.")] = None,
    data: Annotated[str | None, Option(help="digits, mnist, fashion-mnist, an .npz file (x_train, y_train, ...), or file.py:make_data().")] = None,
    loss: Annotated[str | None, Option(help="cross_entropy, mse, bce_with_logits or file.py:function.  [default: by the targets]")] = None,
    optimizer: Annotated[str | None, Option(help="sgd, nesterov, adam or adamw.  [default: sgd if --lr is given]")] = None,
    optimizer_state: Annotated[Path | None, Option(help="The optimizer's saved state_dict: Adam's stability limit needs its second moments.")] = None,
    lr: Annotated[float | None, Option(help="The learning rate in use.")] = None,
    momentum: Annotated[float | None, Option(help="Momentum; beta_1 for Adam.")] = None,
    weight_decay: Annotated[float | None, Option(help="Weight decay.")] = None,
    batch_size: Annotated[int | None, Option(help="The batch size in use.", min=1)] = None,
    init: Annotated[
        list[str] | None, Option(help="What the initialisation was, where it is not the layers' default: kaiming, xavier, orthogonal, or layer=variance. Repeatable.")
    ] = None,
    budget: Annotated[str, Option(help="The time to spend: 90s, 5m, 1h.")] = "60s",
    examples: Annotated[int | None, Option(help="Keep this many training examples.  [default: all; the budget decides how many are measured]", min=1)] = None,
    history: Annotated[Path | None, Option(help="The readings over training that gnomon.hooks.Watch wrote (history.json).")] = None,
    checkpoints: Annotated[
        Path | None, Option(help="A folder of checkpoints to be read over training: step_100.safetensors, epoch=3-step=300.ckpt, checkpoint-500/, 0100.pt.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of every random number.")] = 0,
    threads: Annotated[int | None, Option(help="Threads of PyTorch, part of what fixes the bits of a result.  [default: 1 for small networks, else 2]", min=1)] = None,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1 or mps (which has no float64).")] = "cpu",
    only: Annotated[str | None, Option(help="Chapters, with commas: landscape,dynamics.")] = None,
    out: Annotated[Path | None, Option(help="The page; report.json is written beside it.  [default: report.html; with --json no file]")] = None,
    json: Annotated[bool, Option("--json", help="Print the report as JSON, alone, on standard output.")] = False,
    plan: Annotated[Path | None, Option(help="A report.json whose plan is repeated, or resumed.")] = None,
    store: Annotated[Path | None, Option(help="Where measurements are kept until the report is done.  [default: in the cache]")] = None,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Say what is done, and show tracebacks.")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Examine a network: predictions of theory beside measurements, as a page and as JSON.

    Ctrl-C keeps what has been measured; the same command goes on from there.
    """
    network = {
        "weights": weights, "initial": initial, "data": data, "loss": loss, "optimizer": optimizer, "optimizer_state": optimizer_state, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "batch_size": batch_size, "init": tuple(init or ()), "examples": examples, "device": device, "history": history,
        "checkpoints": checkpoints,
    }  # fmt: skip
    page = out if out is not None else None if json else Path("report.html")
    again = command_line(model, network | {"budget": budget, "seed": seed, "threads": threads, "only": only})
    _set_up(verbose)
    with contextlib.redirect_stdout(sys.stderr):
        report = _report(model, network, page=page, again=again, budget=budget, seed=seed, threads=threads, only=only, plan=plan, store=store, verbose=verbose, quiet=quiet)
    files = report.save(page, page.with_suffix(".json")) if page is not None else []
    if json:
        from gnomon.run.store import dumps

        typer.echo(dumps(report.document), nl=False)
    elif not quiet:
        from gnomon.report.text import summary

        typer.echo(summary(report.document, paths=files), nl=False)


def _report(
    model: str | None, network: dict[str, Any], *, page: Path | None, again: str, budget: str, seed: int, threads: int | None, only: str | None, plan: Path | None,
    store: Path | None, verbose: bool, quiet: bool,
) -> Any:  # fmt: skip
    """The Report; what can be seen to be wrong is refused before anything takes long."""
    from gnomon.cli._network import Network, subject_of
    from gnomon.cli._output import check_folder, check_page, progress
    from gnomon.core.environment import cache_folder, fixed_threads
    from gnomon.core.errors import InvalidInput
    from gnomon.examination.run import examine as make_report
    from gnomon.run.budget import seconds
    from gnomon.run.store import REPORT, read_json

    seconds(budget)
    if page is not None:
        check_page(page)
    check_folder(store or cache_folder() / "store", "choose another place with --store, or with GNOMON_CACHE")
    _check_history(network["history"], network["checkpoints"])
    repeated = None if plan is None else read_json(plan, schema=REPORT)
    if repeated is not None:
        seed, threads = int(repeated["plan"]["seed"]), int(repeated["plan"]["threads"])
    if model is None:
        given = [f"--{name.replace('_', '-')}" for name, value in network.items() if value not in (None, (), "cpu")]
        if given:
            raise InvalidInput(f"{given[0]} needs a network: gnomon examine net.py:make_model {given[0]} ...")
    elif network["data"] is None:
        raise InvalidInput("Give the data that the network was trained on: --data digits | mnist | fashion-mnist | file.npz | file.py:make_data()")
    with fixed_threads(threads or 2), progress(quiet=quiet, verbose=verbose) as tell:
        tell(0.0, "reading the network and its data" if model else "training a small network on digits")
        if model is None:
            from gnomon.studies.default import default_subject

            subject, data_name = default_subject(seed), "digits"
        else:
            subject, data_name = subject_of(Network(model=model, seed=seed, **network))
        if not quiet:
            typer.echo(headline(subject, data_name, budget), err=True)
        return make_report(subject, budget=budget, seed=seed, threads=threads, only=only, plan=repeated, store=store, progress=tell, data_name=data_name, again=again)


def _check_history(history: Path | None, checkpoints: Path | None) -> None:
    """See that what is to be drawn over training is there, before anything takes long.  Raises: InvalidInput."""
    from gnomon.core.errors import InvalidInput
    from gnomon.examination.checkpoints import checkpoints_in
    from gnomon.examination.history import load

    if history is not None and checkpoints is not None:
        raise InvalidInput("Give one of --history and --checkpoints: both fill the same chapter.")
    if history is not None and history.is_dir():
        raise InvalidInput(f"{history} is a folder; --checkpoints {history} reads the checkpoints in it, --history takes a file.")
    if history is not None:
        load(history)
    if checkpoints is not None:
        checkpoints_in(checkpoints)


def headline(subject: Any, data_name: str, budget: str) -> str:
    """What is examined, in a line."""
    total = sum(parameter.numel() for parameter in subject.module.parameters())
    kept, all_of_them = len(subject.train), subject.train.population
    examples = f"{kept:,} examples" if kept == all_of_them else f"{kept:,} of {all_of_them:,} examples"
    return f"{subject.name} · {total:,} parameters · {data_name}, {examples} · budget {budget}   (Ctrl-C keeps what is done; the same command goes on)"


def command_line(model: str | None, options: dict[str, Any]) -> str:
    """The command that makes this report again, without what does not change it."""
    defaults = {"budget": "60s", "seed": 0, "device": "cpu"}
    words = ["gnomon", "examine", *([model] if model else [])]
    for name, value in options.items():
        for entry in value if isinstance(value, tuple) else () if value is None or value == defaults.get(name) else (value,):
            words += [f"--{name.replace('_', '-')}", str(entry)]
    return shlex.join(words)


def _set_up(verbose: bool) -> None:
    """Threads wait asleep; log messages go to stderr with -v; warnings of libraries are for developers."""
    # threads that wait by spinning starve each other wherever another program runs; this must be set before torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    else:
        warnings.simplefilter("ignore")
