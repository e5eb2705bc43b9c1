"""Pictures during training: source | result | relevance, as files and in the logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.io import encode_png

from smsff.atomic import write_aside
from smsff.training.faults import going_on

COLUMNS = ("source", "result", "relevance")
GAP = 4
"""White pixels between pictures."""


def picture_row(pictures: Mapping[str, Tensor]) -> Tensor:
    """One row (3, H, W) uint8 of the columns that exist.

    Args:
        pictures: ``source`` and ``result`` (3, H, W) in [-1, 1], ``relevance`` (1, H, W) in [0, 1].
    """
    cells = []
    for name in COLUMNS:
        if name not in pictures:
            continue
        cell = pictures[name].float()
        cell = cell.expand(3, -1, -1) if name == "relevance" else (cell + 1) / 2
        cells.append(F.pad((cell.clamp(0, 1) * 255).round().byte(), (0, GAP, 0, GAP), value=255))
    return torch.cat(cells, dim=2)


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different widths below each other, white where there is nothing."""
    width = max(row.shape[2] for row in rows)
    return torch.cat([F.pad(row, (0, width - row.shape[2]), value=255) for row in rows], dim=1)


def write_png(path: Path, picture: Tensor) -> None:
    """Write (C, H, W) uint8; a reader never sees half a file."""
    write_aside(path, lambda aside: aside.write_bytes(encode_png(picture.cpu()).numpy().tobytes()))


class ImageGrid(pl.Callback):
    """Writes ``<folder>/step_XXXXXX.png`` after each validation and shows it to every logger that takes pictures."""

    def __init__(self, *, folder: str | Path, max_images: int = 4) -> None:
        self.folder = Path(folder)
        self.max_images = max_images
        self.rows: list[Tensor] = []
        self.last_step = -1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for i in range(min(len(outputs["source"]), self.max_images - len(self.rows))):
            self.rows.append(picture_row({name: outputs[name][i].cpu() for name in COLUMNS if name in outputs}))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last_step = trainer.global_step
        if self.rows:
            self.write(trainer, trainer.global_step)
        self.rows = []

    @rank_zero_only
    def write(self, trainer: pl.Trainer, step: int) -> None:
        picture, path = stack_rows(self.rows), self.folder / f"step_{step:06d}.png"
        with going_on(str(path)):
            write_png(path, picture)
        for logger in trainer.loggers:
            with going_on(f"the pictures of {type(logger).__name__}"):
                self.show(logger, picture, step)

    @staticmethod
    def show(logger: Logger, picture: Tensor, step: int) -> None:
        """Give a picture (3, H, W) uint8 to a logger that takes pictures."""
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(key="samples", images=[picture.permute(1, 2, 0).numpy()], step=step)
            return
        add_image = getattr(getattr(logger, "experiment", None), "add_image", None)  # TensorBoard
        if add_image is not None:
            add_image("samples", picture, step)
