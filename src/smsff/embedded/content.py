"""Varied image content from few photos: augmented photo crops and synthetic "dead leaves" pictures.

Dead leaves (occluding shapes with a power law of sizes) have the scale invariance and the edges of natural images
(Lee, Mumford and Huang 2001). They are drawn here with palettes, gradients and textures taken from the photos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
