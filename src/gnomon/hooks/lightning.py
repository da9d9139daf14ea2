"""The callback for Lightning (`lightning.pytorch` or `pytorch_lightning`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gnomon.core.errors import require

if TYPE_CHECKING:
    from gnomon.hooks.watch import Watch


def callback(watch: Watch) -> Any:
    """A Lightning callback that says each optimizer step to a Watch, on the process of global rank 0 alone.

    Raises: MissingExtra where Lightning is not installed.
    """
    old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    base: Any = require("pytorch_lightning" if old else "lightning.pytorch", "lightning").Callback

    class WatchCallback(base):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero:
                watch.use(next(iter(trainer.optimizers), None))
                watch.step(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            # with accumulated gradients several batches end at one step
            if trainer.is_global_zero and trainer.global_step != watch.last:
                watch.step(trainer.global_step)

    return WatchCallback()
