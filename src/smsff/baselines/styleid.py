"""StyleID (Chung et al. 2024): a style picture by the keys and values of its self-attention, without training.

Photo and style picture are inverted by DDIM with the empty prompt. Sampling begins at the photo's noise with the means
and deviations of the style's (AdaIN). In the self-attention of the named layers the query is
gamma Q_photo + (1 - gamma) Q, keys and values are those of the style picture, and the logits are multiplied by the
temperature. Q_photo, K and V are those of the inversions; not kept for all steps, which takes 3 GB and more for
a picture, but computed again from the inverted latents in the same pass of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from smsff.baselines.diffusion import (
    Noise,
    at_working_size,
    cropped_like,
    decode,
    denoise,
    encode,
    invert,
    prompted,
    scheduler,
)
from smsff.errors import UserError
from smsff.teacher.stable_diffusion import StableDiffusionTeacher


class StyleAttention:
    """Attention processor for rows (photos, styles, results): the results look at the styles."""

    def __init__(self, gamma: float, temperature: float) -> None:
        self.gamma, self.temperature = gamma, temperature

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(3 B, L, C) to the same shape."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        photo, style, own = query.chunk(3)
        query = torch.cat([photo, style, self.temperature * (self.gamma * photo + (1 - self.gamma) * own)])
        rows = torch.arange(len(query), device=query.device)
        rows[-len(own) :] -= len(own)
        heads = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key[rows], value[rows])]
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return out


def adain(content: Tensor, style: Tensor) -> Tensor:
    """(B, C, h, w) with the mean and deviation of each channel of `style`."""
    mean, std = content.mean((-2, -1), keepdim=True), content.std((-2, -1), keepdim=True)
    return (content - mean) / std * style.std((-2, -1), keepdim=True) + style.mean((-2, -1), keepdim=True)


def self_attention(unet: UNet2DConditionModel, layers: Sequence[int]) -> list[str]:
    """Names of the self-attention processors of these layers of the decoder, counted from 0 at its coarsest.

    Raises:
        UserError: The decoder has no attention there.
    """
    per_block = len(unet.up_blocks[0].resnets)
    prefixes = [f"up_blocks.{layer // per_block}.attentions.{layer % per_block}." for layer in layers]
    found = [[n for n in unet.attn_processors if n.startswith(p) and ".attn1." in n] for p in prefixes]
    if missing := [layer for layer, names in zip(layers, found, strict=True) if not names]:
        raise UserError(f"baseline.layers: the decoder of teacher.base has no attention in layer {missing[0]}")
    return [name for names in found for name in names]


class StyleID:
    """A `Baseline` with a style picture.

    Args:
        teacher: The base.
        gamma: Share of the photo's own query.
        temperature: Factor on the logits.
        layers: Of the decoder, counted from 0 at its coarsest.
        steps: Of DDIM, each way.
        resolution: Pictures are worked on at about resolution^2 pixels; the style is cropped to the photo's shape.
    """

    needs_style = True

    def __init__(
        self,
        teacher: StableDiffusionTeacher,
        *,
        gamma: float,
        temperature: float,
        layers: Sequence[int],
        steps: int,
        resolution: int | None,
    ) -> None:
        self.teacher, self.steps, self.resolution = teacher, steps, resolution
        self.attention = StyleAttention(gamma, temperature)
        self.names = self_attention(teacher.unet, layers)

    @torch.no_grad()
    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`; there is no noise to seed."""
        assert style is not None
        x = at_working_size(content, self.resolution, self.teacher)
        both = torch.cat([x, cropped_like(style, (x.shape[-2], x.shape[-1]))])
        inverse = scheduler(DDIMInverseScheduler, self.teacher, self.steps)
        path = invert(self._empty(2 * len(x)), inverse, encode(self.teacher, both))
        plain = self._empty(3 * len(x))

        def noise(z_t: Tensor, t: int) -> Tensor:
            return plain(torch.cat([path[t], z_t]), t)[-len(z_t) :]

        unet, sampler = self.teacher.unet, scheduler(DDIMScheduler, self.teacher, self.steps)
        stock = unet.attn_processors
        unet.set_attn_processor({**stock, **dict.fromkeys(self.names, self.attention)})
        try:
            times = sampler.timesteps.tolist()
            z = denoise(noise, sampler, adain(*path[times[0]].chunk(2)), times)
        finally:
            unet.set_attn_processor(stock)
        return decode(self.teacher, z, content)

    def _empty(self, rows: int) -> Noise:
        """The base's noise under the empty prompt."""
        return prompted(self.teacher.base, self.teacher.encode_prompts([""]).expand(rows))
