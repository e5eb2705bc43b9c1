"""What the objective needs of a diffusion model: one callable signature for every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from smsff.teacher.schedule import NoiseSchedule, cfg


class Score(Protocol):
    """A noise prediction: base, style and fake model are all of this form.

    The score of the noised density is ``-eps / sqrt(1 - ab_t)``, so differences of two predictions at the same
    (z_t, t) are differences of scores up to that factor.
    """

    def __call__(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """eps (B, C, h, w) float32 for z_t (B, C, h, w), t long (B,) and prompt embeddings cond (B, L, D)."""
        ...


class LatentCoder(Protocol):
    """Images in [-1, 1], (B, 3, H, W), to scaled latents (B, channels, H / downscale, W / downscale) and back."""

    @property
    def downscale(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def encode(self, x: Tensor) -> Tensor:
        """Scaled latent, the mean of the posterior, differentiable in x."""
        ...

    def decode(self, z: Tensor) -> Tensor: ...


class Teacher(Protocol):
    """The frozen side: the un-adapted model ``base`` and the same model in the wanted ``style``."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    @property
    def latent(self) -> LatentCoder: ...

    @property
    def base(self) -> Score: ...

    @property
    def style(self) -> Score: ...

    def encode_prompts(self, prompts: Sequence[str], *, style: bool = False) -> Tensor:
        """Prompt embeddings (N, L, D), cached by prompt; with ``style`` those that the style score takes."""
        ...

    def drop_text_encoder(self) -> None:
        """Free the text encoder; prompts encoded before stay available."""
        ...


def guided(score: Score, z_t: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Noise prediction under classifier-free guidance of ``scale`` (1 = conditional only), shape of z_t.

    A scale of 1 costs one call on B samples and never touches ``uncond``; any other scale one call on 2B.

    Args:
        z_t: (B, C, h, w); t: (B,); cond: (B, L, D); uncond: (B, L, D) or (1, L, D).
    """
    if scale == 1:
        return score(z_t, t, cond)
    both = torch.cat([uncond.expand_as(cond), cond])
    eps_uncond, eps_cond = score(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
    return cfg(eps_cond, eps_uncond, scale)
