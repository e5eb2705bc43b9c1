"""Luma and Gaussian blur of pictures."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

LUMA = (0.299, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """Rec. 601 luma of RGB (B, 3, H, W), shape (B, 1, H, W)."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with reflected border; the kernel reaches 3 sigma."""
    return gaussian_blur(x, 2 * int(3 * sigma + 0.5) + 1, sigma)
