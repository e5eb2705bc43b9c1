"""How a step wanted in latent space becomes a step of the picture.

The paper lets the gradient flow back through the encoder. An encoder ignores some patterns of pixels and exaggerates
others, and a generator trained through it finds them: the latents come to what is asked while the picture fills with
fine patterns that no decoder would paint. The other way here (ours) decodes the latents with and without the step and
asks the picture for the difference, which is a picture; the encoder then needs no backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from smsff.training.speed import without_autocast

Pullback = Literal["encoder", "decoder"]


@torch.no_grad()
def decoded_step(decode: Callable[[Tensor], Tensor], z: Tensor, step: Tensor, size: tuple[int, int]) -> Tensor:
    """D(z) - D(z - step), to first order the decoder's Jacobian times `step`.

    Args:
        decode: Scaled latents to pictures in [-1, 1].
        z: Latents (B, C, h, w).
        step: What is to be subtracted from z, of the same shape.
        size: Height and width of the picture, which the encoder may have padded.

    Returns:
        (B, 3, *size), to be subtracted from the picture.
    """
    with without_autocast(z.device):  # in 16 bits the two would differ by their rounding more than by a small step
        before, after = decode(torch.cat([z, z - step])).chunk(2)
    return (before - after)[..., : size[0], : size[1]]
