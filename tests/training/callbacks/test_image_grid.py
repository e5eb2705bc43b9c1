from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchvision.io import decode_image

from smsff.training.callbacks.image_grid import GAP, ImageGrid, picture_row, stack_rows


def pictures(height: int, width: int) -> dict[str, Tensor]:
    return {
        "source": torch.full((3, height, width), -1.0),
        "result": torch.full((3, height, width), 1.0),
        "relevance": torch.full((1, height, width), 0.5),
    }


class FakeLogger:
    """Takes pictures the way Weights & Biases does."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, int]] = []

    def log_image(self, *, key: str, images: list[Any], step: int) -> None:
        self.pictures.append((key, step))


class FakeBoard:
    """Takes pictures the way TensorBoard does."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.experiment = SimpleNamespace(
            add_image=lambda name, picture, step: self.shapes.append(tuple(picture.shape))
        )


def test_row_holds_source_result_and_relevance_side_by_side() -> None:
    row = picture_row(pictures(5, 7))
    assert row.shape == (3, 5 + GAP, 3 * (7 + GAP))
    assert row.dtype == torch.uint8
    assert row[:, 0, 0].tolist() == [0, 0, 0]
    assert row[:, 0, 7 + GAP].tolist() == [255, 255, 255]
    assert row[:, 0, 2 * (7 + GAP)].tolist() == [128, 128, 128]
    without = {k: v for k, v in pictures(5, 7).items() if k != "relevance"}
    assert picture_row(without).shape == (3, 5 + GAP, 2 * (7 + GAP))


def test_rows_of_different_widths_are_filled_with_white() -> None:
    grid = stack_rows([torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(3, 5, 9, dtype=torch.uint8)])
    assert grid.shape == (3, 9, 9)
    assert (grid[:, :4, 6:] == 255).all()
    assert (grid[:, 4:] == 0).all()


def test_grid_is_written_once_for_each_validation_and_shown_to_loggers_that_take_pictures(tmp_path: Path) -> None:
    logger, board = FakeLogger(), FakeBoard()
    trainer: Any = SimpleNamespace(global_step=12, loggers=[logger, board, object()])
    module: Any = None
    grid = ImageGrid(folder=tmp_path / "samples", max_images=2)
    grid.on_validation_epoch_start(trainer, module)
    for size in ((5, 7), (6, 4), (8, 8)):
        outputs = {name: picture[None] for name, picture in pictures(*size).items()}
        grid.on_validation_batch_end(trainer, module, outputs, None, 0)
    grid.on_validation_epoch_end(trainer, module)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step_000012.png"]
    picture = decode_image(str(tmp_path / "samples" / "step_000012.png"))
    assert picture.shape == (3, 5 + 6 + 2 * GAP, 3 * (7 + GAP))  # two rows at most
    assert logger.pictures == [("samples", 12)]
    assert board.shapes == [tuple(picture.shape)]
    assert grid.last_step == 12
