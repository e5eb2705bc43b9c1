"""Inputs around the way from a photo to its styled form: where a generator's outputs lie while it learns the style.

A generator does not move along the straight line from the photo to the target: parts of a picture are ahead of others,
some go too far, and its filters add errors of their own. A teacher that was trained on the line alone does not correct
them (docs/notebook/embedded_teacher.md).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PHOTOS = 0.35
"""Share of the inputs that are the photo itself."""
BEYOND = 1.3
"""The others lie up to here on the line from the photo (0) to its styled form (1)."""
FIELDS = 0.5
"""Share of these whose place on the line varies smoothly over the picture."""
FILTERED = 0.6
"""Share of these with a random filter of the input added, at most as large as the styled form's change."""


def way_inputs(photo: Tensor, styled: Tensor, rng: np.random.Generator) -> Tensor:
    """An input for each photo and its styled form, all (B, C, H, W): latents, or images in [-1, 1]."""
    size = len(photo)
    if size == 0:
        return photo
    coarse = torch.from_numpy(rng.random((size, 1, 4, 4), dtype=np.float32)).to(photo)
    field = F.interpolate(coarse, photo.shape[-2:], mode="bicubic", align_corners=True).clamp(0, 1)
    share = torch.where(per_sample(rng.random(size) < FIELDS, photo) > 0, field, per_sample(rng.random(size), photo))
    moving = per_sample(rng.random(size) >= PHOTOS, photo)
    mixed = torch.lerp(photo, styled, moving * BEYOND * share)
    strength = per_sample(rng.random(size) * (rng.random(size) < FILTERED), photo)
    return torch.where(moving > 0, add_filter(mixed, strength * rms(styled - photo), rng), mixed)


def add_filter(x: Tensor, size: Tensor, rng: np.random.Generator) -> Tensor:
    """Add a random linear filter of x, 3 x 3 and across channels; half of the filters leave out the mean.

    Args:
        x: (B, C, H, W).
        size: Root mean square of what is added, (B, 1, 1, 1).
    """
    count, channels = x.shape[:2]
    taps = rng.standard_normal((count, channels, channels, 3, 3), dtype=np.float32)
    taps -= (rng.random((count, 1, 1, 1, 1)) < 0.5) * taps.mean((3, 4), keepdims=True)
    kernels = torch.from_numpy(taps).to(x).flatten(0, 1)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate").reshape(1, count * channels, x.shape[-2] + 2, x.shape[-1] + 2)
    filtered = F.conv2d(padded, kernels, groups=count).view_as(x)
    return x + filtered * (size / rms(filtered).clamp_min(1e-6))


def per_sample(values: NDArray[np.generic], like: Tensor) -> Tensor:
    """(B,) numbers as (B, 1, 1, 1), on the device and in the dtype of `like`."""
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1).to(like)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()
