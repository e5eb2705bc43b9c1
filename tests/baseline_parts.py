"""What the tests of the baselines share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smsff.teacher.stable_diffusion import StableDiffusionTeacher

AS_PUBLISHED = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
"""What the schedulers of Stable Diffusion and SDXL say of their timesteps."""
Teacher = Callable[..., StableDiffusionTeacher]


def photos(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Smooth pictures (B, 3, H, W) in [0, 1]."""
    small = torch.rand(batch, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
