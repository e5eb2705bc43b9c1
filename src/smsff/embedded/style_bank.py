"""Pictures that lie in memory, on the device, as batches for the training of a known style's LoRA.

Some samples are *loose pairs*: the input is a photo or on the way to the target (`way_inputs`), the target a form of it
in a style of the same kind, but not in the style itself. They are prior preservation (Ruiz et al. 2023) of what the
base knows of the way from a photo to such a style; the style itself is learned from pictures in it alone, never from a
photo beside its stylization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from smsff.data.crops import middle, to_signed
from smsff.embedded.pictures import CAPTIONS
from smsff.embedded.way import add_filter, way_inputs

OVERDONE = 0.6
"""Share of the style's own pictures whose input overdoes the style, while the target is the picture itself: the teacher
then leads a generator back that does so."""


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
        *,
        pairs: tuple[Tensor, Tensor],
        paired: float,
        restyle: Callable[[Tensor, np.random.Generator], Tensor],
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
            pairs: Photos and their loosely styled forms, (M, 3, H, W) each, uint8 on the same device.
            paired: Share of the samples that are such pairs.
            restyle: A style of its kind with random parameters, on (1, 3, H, W) in [0, 1].
            resolution, margin: Side of a crop, and the pixels around it.
            batch_size, steps, seed: Of the training.
        """
        super().__init__()
        self.styled, self.pairs, self.paired, self.restyle = styled, torch.cat(pairs, 1), paired, restyle
        self.window, self.margin = resolution + 2 * margin, margin
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.count = len(styled) - min(held_out, len(styled) // 2)

    def captions(self) -> list[str]:
        return list(CAPTIONS)

    def prior_captions(self) -> list[str]:
        return []

    def batch(self, iteration: int) -> dict[str, Any]:
        """One training batch, a pure function of the seed and the iteration; the pairs come first."""
        rng, size = np.random.default_rng([self.seed, iteration]), self.batch_size
        count = int(rng.binomial(size, self.paired))
        of_pairs, of_styled = rng.integers(len(self.pairs), size=count), rng.integers(self.count, size=size - count)
        photo, loose = self.windows(self.pairs, of_pairs, rng).chunk(2, 1)
        mixed = way_inputs(photo, loose, rng)
        styled = self.windows(self.styled, of_styled, rng)
        moved = rng.random(len(styled)) < OVERDONE
        inputs = [self.overdone(one[None], rng) if move else one[None] for one, move in zip(styled, moved, strict=True)]
        index = np.concatenate([of_pairs, of_styled])
        return {
            "image": torch.cat([loose, styled]),
            "input": torch.cat([mixed, *inputs]),
            "degraded": torch.from_numpy(np.concatenate([np.ones(count, bool), moved])).to(styled.device),
            "margin": self.margin,
            "caption": [CAPTIONS[i % len(CAPTIONS)] for i in index],
            "index": torch.from_numpy(index),
            "iteration": torch.full((size,), iteration),
            "position": torch.arange(size),
        }

    def overdone(self, styled: Tensor, rng: np.random.Generator) -> Tensor:
        """A picture in the style (1, 3, H, W) with a random filter added, or with a style of its kind put on again."""
        if rng.random() < 0.5:
            return add_filter(styled, 0.3 * styled.new_full((1, 1, 1, 1), rng.random()), rng)
        again = 2 * self.restyle((styled + 1) / 2, rng) - 1
        return torch.lerp(styled, again, 1.3 * float(rng.random()))

    def windows(self, pictures: Tensor, index: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Crops of the indexed pictures in [-1, 1], half of them mirrored."""
        x = to_signed(crops(pictures, index, self.window, rng))
        mirror = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < 0.5).to(x.device)
        return torch.where(mirror, x.flip(3), x)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        start = self.trainer.global_step if self.trainer else 0
        return DataLoader(_Batches(self, start), batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The middle of each held-out picture, one at a time."""
        pictures: Sequence[dict[str, Any]] = [
            {
                "image": to_signed(x[None]),
                "caption": [CAPTIONS[(self.count + i) % len(CAPTIONS)]],
                "held_out": i,
                "margin": self.margin,
            }
            for i, x in enumerate(middle(self.styled[self.count :], self.window))
        ]
        return DataLoader(pictures, batch_size=None)  # type: ignore[arg-type]


class _Batches(IterableDataset[dict[str, Any]]):
    def __init__(self, bank: StyleBank, start: int) -> None:
        self.bank, self.start = bank, start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.bank.batch, range(self.start, self.bank.steps))
