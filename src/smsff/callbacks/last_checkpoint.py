"""Every run ends with a checkpoint of its last step: a finished one, and one that Ctrl-C or SIGTERM ends."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LastCheckpoint(pl.Callback):
    """Saves at the last step, and makes the step at which a signal arrives the last one.

    Interrupting in the middle of an optimizer step would leave half-updated weights; so the step is finished first. A
    second signal stops at once; the last regular checkpoint then stands.

    Args:
        path: The checkpoint to write.

    Attributes:
        received: The signal that ended the run, if any.
    """

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)
        self.received: signal.Signals | None = None
        self._saved_step = -1
        self._ended = False
        self._before: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Now for the loader workers, which inherit it: a Ctrl-C reaches them too, and must not end them.
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again: Lightning has put its own handler for SIGTERM in between.
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._ended:  # put back by Lightning after a failed run
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
            return
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        rank_zero_warn(f"{self.received.name}: finishing this step and saving a checkpoint; once more stops at once")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All processes must stop at the same step, whichever of them has got the signal first.
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            trainer.should_stop = True
            if self.received is None:
                self.received = signal.SIGTERM
        if trainer.should_stop or trainer.global_step >= trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:  # ended by something else, such as max_time
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._ended = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._ended = True
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step
