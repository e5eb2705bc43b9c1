"""Varied image content from few photos: augmented photo crops and synthetic "dead leaves" pictures.

`degrade` makes styled pictures look more like photos again, without a photo of the same scene.

Dead leaves (occluding shapes with a power law of sizes) have the scale invariance and the edges of natural images
(Lee, Mumford and Huang 2001). They are drawn here with palettes, gradients and textures taken from the photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smsff.data.known_styles import blur, luma

Array = NDArray[np.float32]


def jitter_colour(x: Array, rng: np.random.Generator) -> Array:
    """Random contrast, gamma, saturation and (half of the time) channel permutation of RGB (H, W, 3) in [0, 1]."""
    if rng.random() < 0.5:
        x = x[..., rng.permutation(3)]
    grey = x.mean(-1, keepdims=True)
    x = np.clip(grey + rng.uniform(0.6, 1.6) * (x - grey), 0, 1) ** np.float32(2 ** rng.uniform(-0.7, 0.7))
    mean = x.mean()
    x = mean + rng.uniform(0.7, 1.4) * (x - mean) + rng.uniform(-0.1, 0.1)
    return np.clip(x, 0, 1).astype(np.float32)


def photo_crop(photos: Sequence[Image.Image], size: int, rng: np.random.Generator) -> Array:
    """A randomly scaled (0.5 to 1.4), flipped, square crop of one photo, (size, size, 3) in [0, 1]."""
    photo = photos[int(rng.integers(len(photos)))]
    scale = max(float(np.exp(rng.uniform(np.log(0.5), np.log(1.4)))), (size + 1) / min(photo.size))
    side = size / scale
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    box = (left, top, left + side, top + side)
    crop = photo.resize((size, size), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS, box=box)
    x = np.asarray(crop, np.float32) / np.float32(255)
    return x[:, ::-1] if rng.random() < 0.5 else x


def _texture(size: int, photos: Sequence[Image.Image], rng: np.random.Generator) -> Array:
    """A fill for one leaf: a colour of the photos with a gradient, and a photo's or 1/f grain over it."""
    colour = photo_crop(photos, 8, rng).mean((0, 1))
    yy, xx = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (xx * np.cos(angle) + yy * np.sin(angle))[..., None] * rng.normal(0, 0.08, 3)
    kind = rng.random()
    if kind < 0.4:
        grain = np.zeros((1, 1, 1), np.float32)
    elif kind < 0.7:
        patch = photo_crop(photos, size, rng)
        grain = (patch - patch.mean((0, 1))) * rng.uniform(0.3, 1.0)
    else:
        freq = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
        spectrum = rng.normal(size=freq.shape) + 1j * rng.normal(size=freq.shape)
        field = np.fft.irfft2(spectrum / freq ** rng.uniform(0.5, 1.6), s=(size, size)).astype(np.float32)
        grain = (field / field.std())[..., None] * rng.uniform(0.01, 0.08) * rng.uniform(0.6, 1.4, 3)
    return (colour + ramp + grain).astype(np.float32)


def dead_leaves(photos: Sequence[Image.Image], size: int, rng: np.random.Generator) -> Array:
    """Occluding discs, ellipses, boxes and stripes with power-law sizes, (size, size, 3) in [0, 1]."""
    image = _texture(size, photos, rng)
    for _ in range(int(rng.integers(12, 90))):
        radius = min(3.0 * rng.random() ** (-1 / 1.6), 0.6 * size)
        cy, cx = rng.uniform(-0.1, 1.1, 2) * size
        aspect, angle, power = rng.uniform(0.15, 1), rng.uniform(0, np.pi), rng.choice([1.0, 2.0, 2.0, 8.0])
        r = int(radius) + 2
        y0, y1, x0, x1 = max(int(cy) - r, 0), min(int(cy) + r, size), max(int(cx) - r, 0), min(int(cx) + r, size)
        if y0 >= y1 or x0 >= x1:
            continue
        yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        u = ((xx - cx) * np.cos(angle) + (yy - cy) * np.sin(angle)) / radius
        v = ((yy - cy) * np.cos(angle) - (xx - cx) * np.sin(angle)) / (radius * aspect)
        distance = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
        softness = radius * aspect / rng.choice([0.7, 0.9, 1.5, 4.0])
        cover = np.clip((1 - distance) * max(softness, 1.0) + 0.5, 0, 1)[..., None]
        leaf = _texture(2 * max(y1 - y0, x1 - x0, 4), photos, rng)[: y1 - y0, : x1 - x0]
        image[y0:y1, x0:x1] += cover * (leaf - image[y0:y1, x0:x1])
    return np.clip(image, 0, 1)


def content(photos: Sequence[Image.Image], size: int, rng: np.random.Generator, *, synthetic: float = 0.4) -> Array:
    """One training picture: dead leaves with probability `synthetic`, else a photo crop; colours jittered."""
    draw = dead_leaves if rng.random() < synthetic else photo_crop
    x = draw(photos, size, rng)
    return jitter_colour(x, rng) if rng.random() < 0.7 else np.clip(x, 0, 1)


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

    Args:
        styled: (B, 3, H, W) in [0, 1].
        photos: (B, 3, H, W) in [0, 1], of other scenes; their fine detail is the texture.
        rng: Each step happens to each picture with its own chance and strength.
        tones: How far brightness and contrast are bent; 0 for a style that leaves them as they are.

    Returns:
        (B, 3, H, W) in [0, 1].
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
