"""Images per second, over a window of recent steps."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)


@rank_zero_only
def rank_zero_info(*message: Any) -> None:
    """Log in the first process alone."""
    log.info(*message)


class Throughput(pl.Callback):
    """Logs ``train/images_per_second`` for all processes together; validation and checkpoints count as time spent.

    Once, when the steps are those of the main part of the training, it says how long the run will take.

    Args:
        window: Steps to average over.
    """

    FIRST = 10  # steps by which the time of the whole run is told

    def __init__(self, *, window: int = 50) -> None:
        self.times: deque[float] = deque(maxlen=window + 1)
        self.mark: tuple[int, float] | None = None
        self.told = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.clear()
        self.times.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = len(batch["image"]) * trainer.world_size
        self.times.append(time.perf_counter())
        rate = images * (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)
        figure = torch.tensor(rate)  # a number would be sent to the device, which waits
        pl_module.log("train/images_per_second", figure, prog_bar=True, batch_size=len(batch["image"]))
        self._tell(trainer, pl_module)

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The time of the run by its first steps, those of a warm-up left out, which are faster."""
        warmup = getattr(pl_module, "warmup", None)
        if self.told or (warmup is not None and warmup.active(trainer.global_step - 1)):
            return
        if self.mark is None:
            self.mark = (trainer.global_step, self.times[-1])
        done = trainer.global_step - self.mark[0]
        if done >= self.FIRST:
            self.told, seconds = True, (self.times[-1] - self.mark[1]) / done
            left = timedelta(seconds=round((trainer.max_steps - trainer.global_step) * seconds))
            rank_zero_info("%.2f s a step, about %s to go for %d steps", seconds, left, trainer.max_steps)
