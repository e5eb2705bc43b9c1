"""What the objective needs of a diffusion model: one callable signature for every score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from smsff.method.schedule import NoiseSchedule, cfg
from smsff.teacher.condition import Condition


class Score(Protocol):
    """A noise prediction: base, style and fake model are all of this form.

    The score of the noised density is ``-eps / sqrt(1 - ab_t)``, so differences of two predictions at the same
    (z_t, t) are differences of scores up to that factor.
    """

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """eps (B, C, h, w) float32 for z_t (B, C, h, w), t long (B,) and prompt embeddings of B rows."""
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

    def encode_prompts(self, prompts: Sequence[str], *, style: bool = False) -> Condition:
        """Prompt embeddings, one row a prompt, cached by prompt; with ``style`` those that the style score takes."""
        ...

    def drop_text_encoder(self) -> None:
        """Free the text encoder; prompts encoded before stay available."""
        ...


def guided(score: Score, z_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float) -> Tensor:
    """Noise prediction under classifier-free guidance of ``scale`` (1 = conditional only), shape of z_t.

    A scale of 1 costs one call on B samples and never touches ``uncond``; any other scale one call on 2B.

    Args:
        z_t: (B, C, h, w); t: (B,); cond: B rows; uncond: B rows or one.
    """
    if scale == 1:
        return score(z_t, t, cond)
    both = Condition.cat([uncond.expand(len(cond)), cond])
    eps_uncond, eps_cond = score(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
    return cfg(eps_cond, eps_uncond, scale)


def guided_with_graph(
    score: Score, z_t: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float
) -> tuple[Tensor, Tensor]:
    """`guided`, without gradient, and the conditional prediction in it with the graph behind it.

    The conditional half is asked for apart, so that no activations of the other are kept.
    """
    with torch.enable_grad():
        kept = score(z_t, t, cond)
    eps = kept.detach()
    if scale == 1:
        return eps, kept
    with torch.no_grad():
        return cfg(eps, score(z_t, t, uncond.expand(len(cond))), scale), kept
