"""Pictures by a score: what one looks at to see how far a LoRA has come."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from smsff.method.schedule import NoiseSchedule
from smsff.randomness import keyed_randn
from smsff.teacher.condition import Condition
from smsff.teacher.latent import pad_to_multiple
from smsff.teacher.score import LatentCoder

LATENT_MULTIPLE = 8
"""Latents are padded to multiples of this, so that a U-Net with up to three downsamplings sees no odd size."""

ScoreLike = Callable[[Tensor, Tensor, Condition], Tensor]


@torch.no_grad()
def img2img(
    score: ScoreLike,
    schedule: NoiseSchedule,
    latent: LatentCoder,
    x: Tensor,
    cond: Condition,
    *,
    t0: int,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """SDEdit (Meng et al. 2022): noise up to t0, then `steps` DDIM steps (Song et al. 2021) down to the clean latent.

    Args:
        x: (B, 3, H, W) in [-1, 1]; mirrored at the right and the bottom to the size that the networks need.
        cond: One row for each picture; no guidance.
        t0: Where to start; larger is more of the score and less of the picture.
        seed: Of the noise, which is the only randomness.

    Returns:
        (B, 3, H, W) in [-1, 1].
    """
    z = latent.encode(pad_to_multiple(x, LATENT_MULTIPLE * latent.downscale))
    noise = keyed_randn(seed, "img2img", 0, range(len(z)), tuple(z.shape[1:])).to(z)
    times = [torch.full((len(z),), int(t), device=z.device) for t in torch.linspace(t0, 0, steps + 1).round()]
    z_t = schedule.add_noise(z, noise, times[0])
    for now, after in pairwise(times):
        eps = score(z_t, now, cond)
        clean = schedule.x0_from_eps(z_t, eps, now)
        # The last step ends in the clean latent, not at t = 0, which still has a little noise.
        z_t = clean if after is times[-1] else schedule.add_noise(clean, eps, after)
    return latent.decode(z_t)[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)
