"""Ctrl-C and SIGTERM end a run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(pl.Callback):
    """Finish the step, save, stop: interrupting in the middle of an optimizer step would leave half-updated weights.

    A second signal stops at once; the last regular checkpoint then stands.

    Args:
        path: The checkpoint to write.

    Attributes:
        received: The signal that ended the run, if any.
    """

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        rank_zero_warn(f"{self.received.name}: finishing this step and saving a checkpoint; once more stops at once")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All processes must stop at the same step, whichever of them has got the signal first.
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            if self.received is None:
                self.received = signal.SIGTERM

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        """Give the signals back: to Lightning, which then gives them back to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
