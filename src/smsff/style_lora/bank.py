"""Pictures that lie in memory, on the device, as batches for the training of a style LoRA.

`StylePictures` reads a folder and degrades sample by sample on the CPU, which a small network on a GPU outruns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from smsff.style_lora.data import Degraded
from smsff.style_lora.known import CAPTIONS

PART = 32
"""Pictures that are degraded with the same sizes of windows and blurs."""


def crops(pictures: Tensor, index: NDArray[np.int64], size: int, rng: np.random.Generator) -> Tensor:
    """Random square crops (B, C, size, size) of the indexed pictures (N, C, H, W)."""
    device = pictures.device
    corners = [rng.integers(side - size + 1, size=(len(index), 1)) for side in pictures.shape[-2:]]
    rows, columns = (torch.from_numpy(corner + np.arange(size)).to(device) for corner in corners)
    chosen = torch.from_numpy(index).to(device)[:, None, None]
    return pictures[chosen, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class StyleBank(pl.LightningDataModule):
    """A style's pictures, (N, 3, H, W) uint8 on any device, in batches as `StylePictures` makes them."""

    def __init__(
        self,
        styled: Tensor,
        photos: Tensor,
        *,
        degraded: Degraded,
        resolution: int,
        margin: int,
        batch_size: int,
        steps: int,
        seed: int,
        held_out: int = 32,
    ) -> None:
        """
        Args:
            styled: The pictures; the last `held_out` of them, but at most half, are only measured on.
            photos: Photos of the same size on the same device, whose fine detail is put on degraded inputs.
            degraded: Which inputs are degraded, and how.
            resolution, margin: Side of a crop, and the pixels around it.
            batch_size, steps, seed: Of the training.
        """
        super().__init__()
        self.styled, self.photos, self.degraded = styled, photos, degraded
        self.window, self.margin = resolution + 2 * margin, margin
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.count = len(styled) - min(held_out, len(styled) // 2)

    def captions(self) -> list[str]:
        return list(CAPTIONS)

    def prior_captions(self) -> list[str]:
        return []

    def batch(self, iteration: int) -> dict[str, Any]:
        """One training batch, a pure function of the seed and the iteration."""
        rng, size = np.random.default_rng([self.seed, iteration]), self.batch_size
        index = rng.integers(self.count, size=size)
        image = self.flipped(crops(self.styled, index, self.window, rng), rng).float() / 255
        other = self.flipped(crops(self.photos, rng.integers(self.count, size=size), self.window, rng), rng)
        pairs = zip(image.split(PART), (other.float() / 255).split(PART), strict=True)
        worse = torch.cat([self.degraded(one, another, rng) for one, another in pairs])
        chosen = torch.from_numpy(rng.random(size) < self.degraded.share).to(image.device)
        return {
            "image": 2 * image - 1,
            "input": 2 * torch.where(chosen.view(-1, 1, 1, 1), worse, image) - 1,
            "degraded": chosen,
            "margin": self.margin,
            "caption": [CAPTIONS[i % len(CAPTIONS)] for i in index],
            "index": torch.from_numpy(index),
            "iteration": torch.full((size,), iteration),
            "position": torch.arange(size),
        }

    def flipped(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Half of the pictures mirrored."""
        mirror = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < 0.5).to(x.device)
        return torch.where(mirror, x.flip(3), x)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(_Batches(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The middle of each held-out picture, one at a time."""
        top, left = ((side - self.window) // 2 for side in self.styled.shape[-2:])
        held_out = self.styled[self.count :, :, top : top + self.window, left : left + self.window]
        pictures: Sequence[dict[str, Any]] = [
            {
                "image": x[None].float() / 127.5 - 1,
                "caption": [CAPTIONS[(self.count + i) % len(CAPTIONS)]],
                "held_out": i,
                "margin": self.margin,
            }
            for i, x in enumerate(held_out)
        ]
        return DataLoader(pictures, batch_size=None)  # type: ignore[arg-type]


class _Batches(IterableDataset[dict[str, Any]]):
    def __init__(self, bank: StyleBank) -> None:
        self.bank = bank

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.bank.batch, range(self.bank.steps))
