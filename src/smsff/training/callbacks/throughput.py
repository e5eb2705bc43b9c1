"""Images per second, over a window of recent steps."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch

log = logging.getLogger(__name__)


class Throughput(pl.Callback):
    """Logs ``train/images_per_second`` for all processes together; validation and checkpoints count as time spent.

    Once, some steps after the warm-up, it logs how long the run will take.
    """

    FIRST = 10  # steps by which the time of the whole run is estimated

    def __init__(self, *, window: int = 50) -> None:
        self.times: deque[float] = deque(maxlen=window + 1)
        self.mark: tuple[int, float] | None = None
        self.estimated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.clear()
        self.times.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = len(batch["image"]) * trainer.world_size
        self.times.append(time.perf_counter())
        rate = images * (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)
        figure = torch.tensor(rate)  # a Python number would be copied to the device, which waits
        pl_module.log("train/images_per_second", figure, prog_bar=True, batch_size=len(batch["image"]))
        self._estimate(trainer, pl_module)

    def _estimate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the remaining time, from steps after the warm-up, which is faster."""
        warmup = getattr(pl_module, "warmup", None)
        if self.estimated or (warmup is not None and warmup.active(trainer.global_step - 1)):
            return
        if self.mark is None:
            self.mark = (trainer.global_step, self.times[-1])
        done = trainer.global_step - self.mark[0]
        if done >= self.FIRST:
            self.estimated, seconds = True, (self.times[-1] - self.mark[1]) / done
            left = timedelta(seconds=round((trainer.max_steps - trainer.global_step) * seconds))
            if trainer.is_global_zero:
                log.info("%.2f s a step, about %s to go for %d steps", seconds, left, trainer.max_steps)
