"""Every run ends with a checkpoint of its last step: a finished one, and one that a signal ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from smsff.errors import RunError
from smsff.training import signals, slurm
from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO
from smsff.training.checkpoints import read_manifest

ATTEMPTS = 3
PAUSE = 2.0
"""Tries to write the last checkpoint of a run, and the seconds between them."""


class LastCheckpoint(pl.Callback):
    """Saves at the last step, and makes the step at which a signal arrives the last one.

    Interrupting in the middle of an optimizer step would leave half-updated weights; so the step is finished first,
    with all its micro-batches. A second signal some seconds later stops at once. A Slurm job that is evicted is also
    requeued. A run that has all its steps is finished, whatever came. Lightning's own handler would save in the middle
    of the step, on the process where the signal came first.
    """

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)
        self.received: signal.Signals | None = None
        self._saved_step = self._last_step = self._first_step = -1
        self._ended = False
        self._since, self._process = 0.0, os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            # Now for the loader workers, which inherit it: a Ctrl-C reaches them too, and must not end them.
            self._before = {number: signal.signal(number, self._note) for number in signals.ENDING}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again: Lightning has put its own handlers in between.
        for number in self._before:
            signal.signal(number, self._note)
        self._last_step = self._first_step = trainer.global_step
        self._finish(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._ended:  # the last pictures: Lightning has put a handler in between that would end them
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._ended:  # put back by Lightning after a failed run
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
            return
        if os.getpid() != self._process:  # a loader worker: the signal is for the process that it works for
            return
        if self.received is not None:
            if signals.further(number, self._since):
                raise KeyboardInterrupt
            return
        self.received, self._since = signal.Signals(number), time.monotonic()
        rank_zero_warn(f"{self.received.name}: finishing this step and saving a checkpoint; once more stops at once")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # a part of an accumulated step
            return
        self._last_step = trainer.global_step
        # All processes must stop at the same step, whichever of them has got the signal first.
        if trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            trainer.should_stop = True
            number = torch.tensor(int(self.received or 0), device=trainer.strategy.root_device)
            number = trainer.strategy.reduce(number, reduce_op="max")
            self.received, self._since = signal.Signals(int(number)), time.monotonic()
        if trainer.should_stop or trainer.global_step >= trainer.max_steps:
            self.save(trainer)
            self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        """After the last step there is nothing to end: a signal that came in it counts as one that comes later."""
        if 0 < trainer.max_steps <= trainer.global_step:  # -1: no limit
            signals.finish(self.received, self._since)
            self.received, self._ended = None, True

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Log the row of the step before its checkpoint is written: a run killed in between would go on without it.

        Lightning logs it once more after the callbacks; `smsff.training.callbacks.loggers.tolerant` drops that.
        """
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # public, but without a declaration
        done = trainer.global_step > self._first_step  # else a part of the first step of a run that goes on
        if not trainer.training or not done or trainer.global_step % every:
            return
        figures = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
        for logger in trainer.loggers if figures else ():
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            logger.save()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:  # ended by something else, such as max_time
            self.save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._ended = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._ended = True
        self._restore()
        if stage != "fit" or self.received is None or self._saved_step != trainer.global_step:
            return
        if slurm.evicted(self.received):
            signals.ignore()  # Slurm ends the processes of a job that it requeues
            slurm.requeue(self.received)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint; at the end of a run there is no next time, so try again for some seconds.

        Raises:
            RunError: it cannot be written; on every process.
        """
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE)
            trainer.save_checkpoint(self.path, weights_only=False)
            written = trainer.strategy.checkpoint_io
            failure = written.failure if isinstance(written, SafeCheckpointIO) else None
            reason = trainer.strategy.broadcast(str(failure.strerror or failure) if failure else None)
            if reason is None:
                self._saved_step = trainer.global_step
                return
        former = read_manifest(self.path)
        stands = f"the checkpoint of step {former.step} stands" if former else "there is no earlier one"
        raise RunError(
            f"the last checkpoint, {self.path} at step {trainer.global_step}, could not be written: {reason}; "
            f"{stands}; make room and go on with ckpt_path=last",
            status=RunError.STORAGE,
        )
