"""metrics.json: what a run came to, written when it ends however it ends."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from smsff.atomic import write_aside
from smsff.training.faults import going_on
from smsff.training.nonfinite import StepGuard


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write it indented; a reader never sees half a file."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(content, indent=2) + "\n"))


class RunSummary(pl.Callback):
    """Writes ``status``, steps, images seen and left out, time, throughput and the last logged figures.

    ``images_seen`` and ``wall_seconds`` are those of the whole run, over all resumptions.
    """

    def __init__(self, *, path: str | Path) -> None:
        self.path = Path(path)
        self.images_seen, self.seconds_before = 0, 0.0
        self.images_here, self.start = 0, time.monotonic()
        self.figures: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images_here, self.start = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = len(batch["image"]) * trainer.world_size
        self.images_seen += images
        self.images_here += images

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collect(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer, "interrupted")  # until the last pictures are there

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.write(trainer, "interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def collect(self, trainer: pl.Trainer) -> None:
        self.figures.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    @rank_zero_only
    def write(self, trainer: pl.Trainer, status: str) -> None:
        self.collect(trainer)
        seconds = time.monotonic() - self.start
        content: dict[str, Any] = {
            "status": status,
            "steps": trainer.global_step,
            "images_seen": self.images_seen,
            "wall_seconds": round(self.seconds_before + seconds, 2),
            "images_per_second": round(self.images_here / max(seconds, 1e-9), 3),
            "figures": {name: v if math.isfinite(v) else None for name, v in sorted(self.figures.items())},
        }
        if torch.cuda.is_available():
            content["gpu_memory"] = torch.cuda.max_memory_allocated()  # bytes, of this process
        guard = getattr(trainer.lightning_module, "guard", None)
        if isinstance(guard, StepGuard):
            content["skipped_steps"] = guard.state_dict()["total"]
        summary = getattr(getattr(trainer, "datamodule", None), "summary", None)
        if summary is not None:
            content["data"] = summary()
        with going_on(str(self.path)):
            write_json(self.path, content)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.monotonic() - self.start
        return {"images_seen": self.images_seen, "wall_seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images_seen, self.seconds_before = state_dict["images_seen"], state_dict["wall_seconds"]
