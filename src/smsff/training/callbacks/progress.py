"""Progress with remaining time: a live bar in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


class LineProgress(ProgressBar):
    """One line every ``every`` steps: step, share, remaining time and the figures marked for the progress bar."""

    def __init__(self, *, every: int = 50) -> None:
        super().__init__()
        self.every = every
        self.enabled = True
        self.start, self.first_step = 0.0, 0

    def disable(self) -> None:
        """Called by Lightning on every process but the first."""
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, trainer.max_steps
        if not self.enabled or (step % self.every and step != total):
            return
        done = max(step - self.first_step, 1)
        remaining = timedelta(seconds=round((time.monotonic() - self.start) / done * (total - step)))
        figures = self.get_metrics(trainer, pl_module).items()
        shown = "  ".join(f"{k.removeprefix('train/')} {v:.4g}" for k, v in figures if isinstance(v, float))
        print(f"step {step}/{total}  {100 * step // total}%  ETA {remaining}  {shown}", flush=True)


def progress_bar(*, every: int = 50) -> ProgressBar:
    """A live bar with elapsed and remaining time if someone is watching, else a line every ``every`` steps."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else LineProgress(every=every)
