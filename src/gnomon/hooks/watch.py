"""Watch a training: cheap readings every so many steps, without a trace in the training itself."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.core import registry
from gnomon.core import rng as chance
from gnomon.core.errors import CannotWrite, GnomonError, InvalidInput
from gnomon.core.loss import LossFunction, Weight
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject, unwrap
from gnomon.core.training import Training
from gnomon.hooks.data import hold
from gnomon.run.history import USUAL, Choice, History, Recorder, head_of, over_steps, round_stride
from gnomon.run.plan import FEWEST, unmet

SHARE = 0.05
"""The most that the usual readings cost, as a part of the training."""
RECORD_COST = 2.5
"""What a record costs beside its readings, in steps of training: copying the parameters, writing the file."""
CALL_COST = 1.0
"""What a pass over a few examples costs at least, in steps."""
SMALL_CALL_COST = 2.5
"""The same on networks of fewer than SMALL parameters, where it is the calls that take time and not the numbers."""
SMALL = 100_000
OFTEN = 0.8
"""The part of the share that what is cheap enough for every record may take; the rest is left to what is dear."""
DEAR = 8.0
"""Full gradients from which a reading is taken on FEWEST examples only."""

log = logging.getLogger(__name__)


class Watch:
    """Takes readings of a network while it is trained, and keeps them in a file that `gnomon examine --history` draws.

    In a bare loop, call `watch.step(step)` once a step; `watch.lightning()` and `watch.trainer()` are callbacks for Lightning and the Hugging Face
    Trainer.  The training is left bit for bit as it would be: readings are taken on a copy of the network in eval mode, outside autocast, in the
    parameters' dtype, and the global random state is put back.  Sharpness is followed: each reading starts from the eigenvector of the last, which takes a
    third of the products or fewer; `choices` says what each reading costs in steps of training.  Nothing that goes wrong while watching stops the training.
    Of several processes the one of rank 0 watches; parameters that are sharded over them (FSDP, ZeRO) are not covered, and are skipped with that reason.
    """

    def __init__(
        self, model: nn.Module, loss: str | LossFunction, train: Any, test: Any = None, *, every: int = 100,
        readings: Iterable[str] | Mapping[str, Mapping[str, int]] | None = None, out: str | Path = "history.json", examples: int = 256, share: float | None = None,
        optimizer: Any = None, lr: float | None = None, momentum: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        initial: Any = None, weight: Weight | None = None, name: str | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        """Draw the examples and choose the readings; nothing is measured or written yet.

        `train` and `test` are tensors (inputs, targets), a Dataset or a DataLoader, of which `examples` are drawn once.  `readings` are names of
        instruments, or a mapping from names to settings (`{"sharpness": {"products": 32}}`); without it the usual ones are taken.  `share` is the most
        that watching may cost as a part of the training: what is too dear for every record is taken at every 2nd, 5th, 10th, ...; by default 5 % for the
        usual readings and no limit for those that are named, which are read on all `examples`.  `optimizer` is best the torch optimizer itself, whose learning rate is then read at each record.
        Raises: InvalidInput for unknown readings (with the nearest name), for readings whose needs are not met, and as `Subject.freeze`; CannotWrite for a place that cannot be written.
        """
        if every < 1:
            raise InvalidInput(f"every must be at least 1 step, not {every}.")
        if share is not None and not 0 < share <= 1:
            raise InvalidInput(f"share must lie in (0, 1], not {share}: 0.05 lets watching cost 5 % of the training.")
        self.model, self.every, self.seed, self.out = unwrap(model), int(every), seed, Path(out)
        self.share = SHARE if share is None and readings is None else share
        self.batch_size = batch_size or getattr(train, "batch_size", None)
        self._asked = (
            None if readings is None else {key: dict(readings[key]) if isinstance(readings, Mapping) else {} for key in ([readings] if isinstance(readings, str) else readings)}
        )
        self._optimizer = optimizer
        self._stated: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        rng = chance.generator(seed, "watch")
        with chance.preserved():
            held = hold(train, examples=examples, rng=chance.child(rng, "train"))
            held_test = None if test is None else hold(test, examples=examples, rng=chance.child(rng, "test"), what="test")
        self._last: int | None = None
        self._leads: bool | None = None
        self._said: set[str] = set()
        self._history: History | None = None
        with _quiet(self.model):
            subject = Subject.freeze(
                self.model, loss, held, held_test, initial=initial, weight=weight, name=name, seed=seed, optimizer=optimizer, batch_size=self.batch_size, **self._stated
            )
        self._plan(subject)

    def _plan(self, subject: Subject) -> None:
        """Choose what is read at which steps of a network, whose own parameters are no longer looked at."""
        with _quiet(self.model):  # the first look at the instruments imports them, and what is imported may draw random numbers
            self._recorder = Recorder(subject, choose(subject, self._asked, every=self.every, share=self.share), seed=self.seed, warm=True)
            settings = {"every": self.every, "share": self.share, "seed": self.seed, "batch_size": self.batch_size}
            head = head_of(subject, self._recorder.choices, kind="watch", settings=settings, threads=torch.get_num_threads())
        for choice in self._recorder.choices:
            if choice.every > self.every:
                head["notes"].append(f"{choice.instrument} is taken every {choice.every:,} steps, so that watching costs at most {100 * (self.share or 1):g} % of the training")
                log.info("%s; a larger share= takes it more often", head["notes"][-1])
        self._history = self._begin(head)

    def _begin(self, head: dict[str, Any]) -> History:
        """An empty history, or the one that stands at `out` where this training goes on."""
        if self._history is not None:
            return History(head, self._history.document()["records"])
        if self.out.is_dir():
            raise InvalidInput(f"{self.out} is a folder; give a file: out={str(self.out / 'history.json')!r}")
        if self.out.exists() and not self.out.is_file():
            raise CannotWrite(f"{self.out} is not a regular file. Choose another place with out=.")
        place = next(folder for folder in self.out.absolute().parents if folder.exists())
        if not os.access(self.out if self.out.exists() else place, os.W_OK):
            raise CannotWrite(f"{self.out} cannot be written. Choose another place with out=.")
        if not self.out.exists():
            return History(head)
        before = History.read(self.out)
        about = ("parameters", "trainable", "loss")
        if any(before.head["subject"].get(key) != head["subject"][key] for key in about):
            raise InvalidInput(
                f"{self.out} holds the history of another network ({before.head['subject'].get('name')}, {before.head['subject']['parameters']:,} parameters). Give another out=, or delete it."
            )
        return History(head, before.document()["records"])

    def use(self, optimizer: Any) -> None:
        """Take the optimizer that is in use, if none was given: learning rates are then recorded, and what needs them is read.  One that is not covered is left out."""
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        if self._optimizer is not None or optimizer is None:
            return
        try:
            Training.of(optimizer, lr=None, momentum=None, weight_decay=None, batch_size=None, module=self.model)
        except GnomonError as error:
            self._once("optimizer", f"watching without the optimizer's limit: {error}")
            return
        self._optimizer = optimizer
        subject = self._recorder.subject
        self._safely("reading the optimizer", lambda: self._plan(dataclasses.replace(subject, training=self._training(), _shared={})))

    def _training(self) -> Training:
        """Optimizer and step size as they are now."""
        return Training.of(self._optimizer, batch_size=self.batch_size, module=self.model, **self._stated)

    def step(self, step: int | None = None) -> None:
        """Say that the parameters have had `step` steps; where a record is due it is taken and written.  Without a number, calls are counted.

        After going back to an earlier step, in this process or in a new one, the records from there on are replaced.
        Cost: nothing where no record is due.
        """
        step = (0 if self._last is None else self._last + 1) if step is None else int(step)
        if self._leads is None:
            self._leads = leading()
        if not self._leads:
            return
        before = step - 1 if self._last is None or step <= self._last else self._last
        assert self._history is not None
        if self._history.steps and self._history.steps[-1] >= step:
            self._history.drop_from(step)
        self._last = step
        if step and step // self.every == before // self.every:
            return
        due = [choice for choice in self._recorder.choices if step // choice.every > before // choice.every and (step > 0 or choice.every == self.every)]
        if due:
            self._safely("taking a record", lambda: self._record(step, due))

    def _record(self, step: int, due: list[Choice]) -> None:
        first = next(iter(self.model.parameters()))
        if first.device != self._recorder.subject.device or first.dtype != self._recorder.subject.dtype:
            self._plan(moved(self._recorder.subject, first.device, first.dtype))
        with _quiet(self.model):
            record = self._recorder.record(state_now(self.model), step, training=self._training(), due=due)
        assert self._history is not None
        self._history.add(record)
        for name, why in record["skipped"].items():
            self._once(f"skipped {name}", f"step {step:,}: {name} was not read: {why}")
        self.write()

    def write(self) -> None:
        """Write the file; where that fails, say so once and go on: the next record tries again with all that is kept."""
        try:
            assert self._history is not None
            self._history.write(self.out)
        except CannotWrite as error:
            self._once("write", f"the history is not written, training goes on: {error}")

    def _safely(self, doing: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._once(doing, f"{doing} failed, training goes on: {type(error).__name__}: {error}")

    def _once(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning("%s", message)

    @property
    def last(self) -> int | None:
        """The step that was said last."""
        return self._last

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What is read, with its settings and at which steps."""
        return self._recorder.choices

    @property
    def history(self) -> dict[str, Any]:
        """The history so far, as in the file."""
        assert self._history is not None
        return self._history.document()

    def __getitem__(self, name: str) -> Reading:
        """A reading over the steps so far.  Raises: InvalidInput where it was not taken yet."""
        found = over_steps(self.history, name)
        if found is None:
            raise InvalidInput(f"There is no reading of {name!r} yet; read are {', '.join(choice.instrument for choice in self.choices)}.")
        return found

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if leading() and self._history is not None and self._history.steps:
            self.write()

    def lightning(self) -> Any:
        """The callback for Lightning: `Trainer(callbacks=[watch.lightning()])`.  Raises: MissingExtra where Lightning is not installed."""
        from gnomon.hooks.lightning import callback

        return callback(self)

    def trainer(self) -> Any:
        """The callback for the Hugging Face Trainer: `Trainer(..., callbacks=[watch.trainer()])`.

        The loss is that of the Watch, on the model's `.logits`: where the model's own shifts its labels, as causal language models do, give one that does.
        Raises: MissingExtra where transformers is not installed.
        """
        from gnomon.hooks.transformers import callback

        return callback(self)


def leading() -> bool:
    """Whether this process is the one that watches: the only one, or that of rank 0."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def state_now(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name as they are now, not copied, tied ones once."""
    return {key: value.detach() for key, value in [*model.named_parameters(), *model.named_buffers()]}


def moved(subject: Subject, device: torch.device, dtype: torch.dtype) -> Subject:
    """The subject on the device and in the dtype to which the training has taken its network."""
    function: Any = subject.loss.function
    if isinstance(function, nn.Module):
        function = function.to(device=device, dtype=dtype)

    def carried(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in state.items()}

    return dataclasses.replace(
        subject, module=subject.module.to(device=device, dtype=dtype), state=carried(subject.state), initial=None if subject.initial is None else carried(subject.initial),
        loss=dataclasses.replace(subject.loss, function=function), _shared={},
    )  # fmt: skip


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Measure inside: no autocast, gradients on, the global random state put back."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with contextlib.ExitStack() as stack:
        stack.enter_context(chance.preserved())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.enable_grad())
        yield


def choose(subject: Subject, asked: Mapping[str, Mapping[str, int]] | None, *, every: int, share: float | None) -> tuple[Choice, ...]:
    """What is read, on how many examples and at which steps: a pure function of the costs that instruments state, so that it is the same on every machine.

    Without a share all examples are read; with one, what is dear is read on FEWEST of them.  What fits into OFTEN of the share is taken at every record, the cheap first.  The others are taken at every m-th record, m one of 1, 2, 3, 4, 5, 6, 8,
    10, 15, 20, ..., and not at step 0: with costs c_i and s left, m_i = sqrt(c_i) sum_j sqrt(c_j) / s spends s and makes the sum of the m_i least.
    Raises: InvalidInput for an unknown reading or setting, and where a need is not met.
    """
    names = asked if asked is not None else {name: {} for name in USUAL if unmet(subject, registry.get_instrument(name), "end") is None}
    found = sorted((_choice(subject, name, given, every, share) for name, given in names.items()), key=lambda choice: choice.cost)
    if not found:
        raise InvalidInput("readings is empty; name at least one instrument, or leave it out.")
    if share is None:
        return tuple(found)
    left, spent, often = share * every, RECORD_COST, 0
    while often < len(found) and spent + found[often].cost <= OFTEN * left:
        spent, often = spent + found[often].cost, often + 1
    left -= spent if often else 0.0
    roots = [math.sqrt(choice.cost + (0.0 if often else RECORD_COST)) for choice in found[often:]]
    rare = [dataclasses.replace(choice, every=every * round_stride(root * sum(roots) / left)) for choice, root in zip(found[often:], roots, strict=True)]
    return (*found[:often], *rare)


def _choice(subject: Subject, name: str, given: Mapping[str, int], every: int, share: float | None) -> Choice:
    instrument = registry.get_instrument(name)
    why = unmet(subject, instrument, "end")
    if why is not None:
        raise InvalidInput(f"{name} cannot be read here: {why or 'the optimizer in use is not one that it is made for'}.")
    if wrong := [key for key in given if key != instrument.knob]:
        raise InvalidInput(f"{name} has no setting {wrong[0]!r}" + (f"; its setting is {instrument.knob!r}." if instrument.knob else "; it has none."))
    value = int(given.get(instrument.knob, instrument.smallest)) if instrument.knob else 0
    if instrument.knob and value < 1:
        raise InvalidInput(f"{name}: {instrument.knob} must be at least 1, not {value}.")
    settings = {instrument.knob: value} if instrument.knob else {}
    gradients = (instrument.warm or instrument.cost)(subject, **settings).gradients
    if instrument.shares and not instrument.warm:
        gradients += registry.get_instrument(instrument.shares).cost(subject, **settings).gradients
    n = min(FEWEST, len(subject.train)) if gradients >= DEAR and share is not None else len(subject.train)
    calls = max(gradients * math.ceil(n / subject.chunk), 0 if instrument.warm else value)
    least = SMALL_CALL_COST if subject.dimension < SMALL else CALL_COST
    return Choice(name, settings, n, every, round(max(gradients * n / (subject.training.batch_size or 32), least * calls), 3))
