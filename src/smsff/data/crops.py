"""The random crop of a training image, as a pure function of its generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def to_signed(image: Tensor) -> Tensor:
    """Values 0 .. 255 (uint8) to [-1, 1] (float32)."""
    return image.float() / 127.5 - 1


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of (3, H, W) uint8; integer arithmetic, so the number of threads does not matter."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)[0]


def shrink_to(image: Tensor, max_side: int) -> Tensor:
    """Scale (3, H, W) uint8 down so that the longer side is at most ``max_side``; smaller images stay as they are."""
    height, width = image.shape[1:]
    factor = max_side / max(height, width)
    if factor >= 1:
        return image
    return resize(image, max(1, round(height * factor)), max(1, round(width * factor)))


def middle(x: Tensor, side: int) -> Tensor:
    """The central square of `side` pixels of (..., H, W), or less where x is smaller."""
    top, left = max(0, (x.shape[-2] - side) // 2), max(0, (x.shape[-1] - side) // 2)
    return x[..., top : top + side, left : left + side]


@dataclass(frozen=True)
class Window:
    """A square part of an image in pixels, perhaps mirrored left and right."""

    top: int
    left: int
    side: int
    mirrored: bool

    def cut(self, image: Tensor, size: int) -> Tensor:
        """The window of (3, H, W) uint8 as (3, size, size) float32 in [-1, 1]."""
        crop = resize(image[:, self.top : self.top + self.side, self.left : self.left + self.side], size, size)
        return to_signed(crop.flip(-1) if self.mirrored else crop)


def random_window(
    image: Tensor,
    *,
    size: int,
    scale: tuple[float, float],
    flip: bool,
    generator: torch.Generator,
    enlarge: float = 1.0,
) -> Window:
    """A random square window of an image, to be resized to ``size`` and perhaps mirrored.

    The side of the window is a fraction of the image's shorter side, uniform in ``scale``. Where the image allows
    that, it is not so small that its pixels are enlarged more than ``enlarge`` times.

    Args:
        image: (3, H, W) uint8.
        size: Side of the result in pixels.
        scale: Lowest and highest fraction of the shorter side, 0 < low <= high <= 1; (1, 1) is the largest square.
        flip: Mirror left and right in half of the cases.
        generator: Always gives four numbers, so that one option does not change the draws of another.
        enlarge: 1 enlarges images only if they are smaller than the crop; more than 1 also shows soft edges.
    """
    fraction, down, right, mirror = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    height, width = image.shape[1:]
    short = min(height, width)
    side = round(short * (scale[0] + (scale[1] - scale[0]) * fraction))
    side = max(side, min(math.ceil(size / enlarge), short))
    top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
    return Window(top, left, side, flip and mirror < 0.5)
