"""Images per second, over a window of recent steps."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
import torch


class Throughput(pl.Callback):
    """Logs ``train/images_per_second`` for all processes together; validation and checkpoints count as time spent.

    Args:
        window: Steps to average over.
    """

    def __init__(self, *, window: int = 50) -> None:
        self.times: deque[float] = deque(maxlen=window + 1)

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
