"""The callback for the Hugging Face Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnomon.core.errors import require

if TYPE_CHECKING:
    from gnomon.hooks.watch import Watch


def callback(watch: Watch) -> Any:
    """A Trainer callback that says each optimizer step to a Watch, on the process of world rank 0 alone.

    Raises: MissingExtra where transformers is not installed.
    """
    base: Any = require("transformers", "hf").TrainerCallback

    class WatchCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.is_world_process_zero:
                watch.use(given.get("optimizer"))
                watch.step(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.is_world_process_zero:
                watch.step(state.global_step)

    return WatchCallback()
