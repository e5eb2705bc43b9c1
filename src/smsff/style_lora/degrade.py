"""Styled pictures made to look more like photos again, without a photo of the same scene."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.data.filters import blur, luma


def close(x: Tensor, size: int) -> Tensor:
    """Morphological closing of (B, 3, H, W) with a square of odd `size`: dark lines thinner than it vanish."""
    dilated = F.max_pool2d(x, size, stride=1, padding=size // 2)
    return -F.max_pool2d(-dilated, size, stride=1, padding=size // 2)


def erase_lines(x: Tensor, size: int, threshold: float) -> Tensor:
    """Dark lines give way to the colours beside them, which meet in the middle of where the line was.

    Args:
        x: (B, 3, H, W) in [0, 1].
        size: Odd; wider lines stay.
        threshold: How much darker than both sides, in luma, a line is.
    """
    grey = luma(x)
    line = F.max_pool2d((close(grey, size) - grey > threshold).to(x), 3, stride=1, padding=1)
    known = 1 - line
    x = x * known
    for _ in range(size // 2 + 2):  # each round fills the pixels that touch a known one
        weight = F.avg_pool2d(known, 3, 1, 1)
        filled = F.avg_pool2d(x, 3, 1, 1) / weight.clamp(min=1 / 9)
        reached = ((known == 0) & (weight > 0)).to(x)
        x, known = x + reached * filled, known + reached
    return torch.where(known > 0, x, F.avg_pool2d(x, size, 1, size // 2))


def strokes(count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Oriented band-passed noise of unit variance, as of hair, grass or weave, (count, 1, size, size)."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    fields = []
    for _ in range(count):
        angle, f0, spread = rng.uniform(0, np.pi), rng.uniform(0.06, 0.3), rng.uniform(0.1, 0.8)
        along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
        band = np.exp(-(((np.abs(along) - f0) / (0.45 * f0)) ** 2) - (across / (f0 * spread)) ** 2)
        field = np.fft.irfft2(band * (rng.normal(size=band.shape) + 1j * rng.normal(size=band.shape)), s=(size, size))
        fields.append(field / field.std())
    return torch.from_numpy(np.stack(fields)[:, None].astype(np.float32))


def patches(count: int, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Soft random regions in [0, 1], (count, 1, *size)."""
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 3, 3)).astype(np.float32))
    shift = torch.from_numpy(rng.normal(0, 0.7, size=(count, 1, 1, 1)).astype(np.float32))
    return torch.sigmoid(4 * (F.interpolate(coarse, size=size, mode="bicubic", align_corners=True) + shift))


def degrade(styled: Tensor, photos: Tensor, rng: np.random.Generator, *, tones: float = 1.0) -> Tensor:
    """Styled pictures with what a style removes put back: soft edges without lines or rims, texture, other tones.

    Pictures are (B, 3, H, W) in [0, 1]; the fine detail of `photos`, of other scenes, is the texture. Each step happens
    to each picture with its own chance and strength; ``tones=0`` leaves brightness and contrast as they are.
    """

    def draw(low: float, high: float, chance: float) -> Tensor:
        size = (len(styled), 1, 1, 1)
        value = np.where(rng.random(size) < chance, rng.uniform(low, high, size), 0)
        return torch.from_numpy(value.astype(np.float32))

    count, _, height, width = styled.shape
    middle = erase_lines(styled, int(rng.choice([5, 7, 9])), float(rng.uniform(0.02, 0.06)))
    unlined = torch.where(draw(1, 1, 0.8) > 0, middle, close(styled, int(rng.choice([3, 5]))))  # or the dark side grows
    x = torch.lerp(styled, unlined, draw(0.6, 1, 0.9))
    x = x - draw(0.3, 1.2, 0.6) * blur((x - styled).clamp(min=0), float(rng.uniform(2.5, 5)))  # rims of the lines
    x = torch.lerp(x, blur(x, float(rng.uniform(0.4, 1.1))), draw(1, 1, 0.5))
    texture = photos - blur(photos, float(rng.uniform(1, 2.5)))
    texture = 0.07 * torch.tanh(texture / 0.07)  # edges of another scene are no texture
    region = torch.lerp(torch.ones_like(x[:, :1]), patches(count, (height, width), rng), draw(1, 1, 0.4))
    x = x + draw(0.3, 1.4, 0.75) * texture * region
    hair = strokes(count, max(height, width), rng)[..., :height, :width] * patches(count, (height, width), rng)
    x = (x + draw(0.01, 0.07, 0.45) * hair).clamp(0, 1)
    x = x ** (2 ** (tones * draw(-0.6, 0.6, 0.6)))
    pivot = torch.where(draw(1, 1, 0.5) > 0, x.mean((1, 2, 3), keepdim=True), torch.ones(()))
    return (pivot + (1 + tones * draw(-0.3, 0.45, 0.7)) * (x - pivot)).clamp(0, 1)
