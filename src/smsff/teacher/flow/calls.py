"""The call of each family's transformer.

Each function takes the network, z_s (B, C, h, w) with even sides, s (B,) in [0, 1], a condition of B rows, and the
guidance input of a guidance-distilled network, and returns the velocity (B, C, h, w), a prediction of noise - z. The
families differ in the scale of their time, in the order of the latents, and in the shape of the prompts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.teacher.condition import Condition


def sd35(net: Any, z: Tensor, s: Tensor, cond: Condition, guidance: float) -> Tensor:
    """Stable Diffusion 3 and 3.5."""
    prompt = {"encoder_hidden_states": cond.tokens, "pooled_projections": cond.pooled}
    return net(hidden_states=z, timestep=1000 * s, **prompt, return_dict=False)[0]


def flux1(net: Any, z: Tensor, s: Tensor, cond: Condition, guidance: float) -> Tensor:
    """FLUX.1; positions are (0, row, column), those of the prompt 0."""
    rows, columns = z.shape[-2] // 2, z.shape[-1] // 2
    places = torch.cartesian_prod(*(torch.arange(n, device=z.device, dtype=z.dtype) for n in (1, rows, columns)))
    prompt = {"encoder_hidden_states": cond.tokens, "pooled_projections": cond.pooled}
    ids = {"img_ids": places, "txt_ids": z.new_zeros(cond.tokens.shape[1], 3)}
    out = net(
        hidden_states=pack(z),
        timestep=s,
        guidance=_guidance_input(net, s, guidance),
        **prompt,
        **ids,
        return_dict=False,
    )
    return unpack(out[0], rows)


def klein(net: Any, z: Tensor, s: Tensor, cond: Condition, guidance: float) -> Tensor:
    """FLUX.2; positions are (0, row, column, 0), those of the prompt (0, 0, 0, place)."""
    rows, columns = z.shape[-2] // 2, z.shape[-1] // 2
    ids = {
        name: torch.cartesian_prod(*(torch.arange(n, device=z.device) for n in sizes))
        for name, sizes in (("img_ids", (1, rows, columns, 1)), ("txt_ids", (1, 1, 1, cond.tokens.shape[1])))
    }
    inputs = {"guidance": _guidance_input(net, s, guidance), "encoder_hidden_states": cond.tokens}
    return unpack(net(hidden_states=pack(z), timestep=s, **inputs, **ids, return_dict=False)[0], rows)


def zimage(net: Any, z: Tensor, s: Tensor, cond: Condition, guidance: float) -> Tensor:
    """Z-Image: time runs from noise to picture, and each prompt has its own length."""
    prompts = [row if mask is None else row[mask] for row, mask in zip(cond.tokens, cond.masks, strict=True)]
    return -torch.stack(net(list(z[:, :, None]), 1 - s, prompts, return_dict=False)[0])[:, :, 0]


def qwen(net: Any, z: Tensor, s: Tensor, cond: Condition, guidance: float) -> Tensor:
    """Qwen-Image."""
    rows, columns = z.shape[-2] // 2, z.shape[-1] // 2
    prompt = {"encoder_hidden_states": cond.tokens, "encoder_hidden_states_mask": cond.mask}
    shapes = [[(1, rows, columns)]] * len(z)
    return unpack(net(hidden_states=pack(z), timestep=s, img_shapes=shapes, **prompt, return_dict=False)[0], rows)


def pack(z: Tensor) -> Tensor:
    """(B, C, h, w) to tokens of 2 x 2, (B, h w / 4, 4 C), rows first; a token's entry is 4 c + 2 dy + dx."""
    return F.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, rows: int) -> Tensor:
    """The latents of which `pack` made these tokens, in so many rows."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, -1)), 2)


def _guidance_input(net: Any, s: Tensor, guidance: float) -> Tensor | None:
    return torch.full_like(s, guidance) if net.config.guidance_embeds else None
