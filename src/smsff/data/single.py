"""One whole picture as the data of a run: for the per-image mode, where the picture itself is what is optimised."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smsff.data.crops import resize, to_signed
from smsff.data.datamodule import BatchDraws, Draw, ResumableLoader, batches_done, collate
from smsff.data.fingerprint import DataState, compare, fingerprint
from smsff.data.folder import BUNDLED
from smsff.data.images import MAX_PIXELS, ImageError, load_image, printable
from smsff.errors import UserError

log = logging.getLogger(__name__)


class SamePicture(Dataset[dict[str, Any]]):
    """The same sample for every draw."""

    def __init__(self, image: Tensor, caption: str) -> None:
        self.image, self.caption = image, caption

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        sample = {"image": self.image, "caption": self.caption, "index": 0}
        return {**sample, "draw": draw, "unreadable": {}}


class SingleImage(LightningDataModule):
    """A picture, resized once, as a batch of one in every step.

    Args:
        path: The picture; None is a bundled photo.
        short_side: Length of its shorter side in the run; both sides are then multiples of ``multiple``.
        multiple: What the sides are rounded to.
        caption: Its caption.
        steps: Optimizer steps of the run.

    Attributes:
        image: (3, H, W) float32 in [-1, 1].

    Raises:
        UserError: a file that cannot be read, or with too many pixels at this size.
    """

    def __init__(
        self, *, path: str | None = None, short_side: int, multiple: int = 8, caption: str = "", steps: int
    ) -> None:
        super().__init__()
        self.path = Path(path) if path else BUNDLED / "test" / "chelsea.jpg"
        try:
            picture = load_image(self.path)
        except ImageError as error:
            raise UserError(f"data.path: {error}") from error
        factor = short_side / min(picture.shape[1:])
        height, width = (max(1, round(side * factor / multiple)) * multiple for side in picture.shape[1:])
        if height * width > MAX_PIXELS:
            raise UserError(
                f"data.path: {printable(self.path)} would have {height} x {width} pixels with data.short_side="
                f"{short_side}; take a picture that is less long"
            )
        self.image = to_signed(resize(picture, height, width))
        self.caption, self.steps = caption, steps

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        batches = self.steps * (self.trainer.accumulate_grad_batches if self.trainer else 1)
        draws = BatchDraws(batch_size=1, batches=batches, rank=0, start=lambda: batches_done(self.trainer))
        return ResumableLoader(SamePicture(self.image, self.caption), batch_sampler=draws, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        whole = {"image": self.image[None], "caption": [self.caption], "name": [self.path.name]}
        return DataLoader([whole], batch_size=None)  # type: ignore[arg-type]

    def captions(self) -> list[str]:
        return [self.caption]

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the picture is not that of the checkpoint."""
        for sentence in compare(state_dict, self.state(), processes=1):
            log.warning("ckpt_path: %s", sentence)

    def state(self) -> DataState:
        """What identifies the picture, for a run that goes on."""
        content = hashlib.sha256(self.image.numpy().tobytes()).hexdigest()
        found = fingerprint([(content, *self.image.shape, self.caption)])
        parts = self.trainer.accumulate_grad_batches if self.trainer else 1
        return DataState(fingerprint=found, images=1, global_batch=1, micro_batches=parts)

    def overview(self) -> str:
        """The picture and its caption, on one line."""
        height, width = self.image.shape[1:]
        return f"{printable(self.path)}: one picture of {width} x {height} pixels, caption {self.caption!r}"

    def summary(self) -> dict[str, int]:
        return {"train_images": 1, "val_images": 1, "captions": 1, "unreadable_images": 0}

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch.pop("unreadable", None)
        return batch
