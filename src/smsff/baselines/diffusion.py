"""What the diffusion baselines share: working size, prompts, DDIM there and back, a ControlNet beside the U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDIMInverseScheduler, DDIMScheduler
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.base.source import Source, local_first
from smsff.teacher.condition import Condition
from smsff.teacher.sampling import LATENT_MULTIPLE
from smsff.teacher.score import Score, guided
from smsff.teacher.stable_diffusion import StableDiffusionTeacher

Noise = Callable[[Tensor, int], Tensor]
"""(z_t, t) to the predicted noise, of the shape of z_t."""
Scheduler = TypeVar("Scheduler", DDIMScheduler, DDIMInverseScheduler)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) in [0, 1] at another size; the same tensor at its own."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


def at_working_size(x: Tensor, resolution: int | None, teacher: StableDiffusionTeacher) -> Tensor:
    """Pictures of about resolution^2 pixels (None: their own size), in their shape, sides as the U-Net needs them."""
    height, width = x.shape[-2:]
    multiple = LATENT_MULTIPLE * teacher.latent.downscale
    scale = resolution / (height * width) ** 0.5 if resolution else 1.0
    fitted = [max(round(side * scale / multiple), 1) * multiple for side in (height, width)]
    return resized(x, (fitted[0], fitted[1]))


def cropped_like(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest middle part of (B, 3, h, w) in the proportions of `size`, at this size."""
    height, width = x.shape[-2:]
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(round(side * scale), 1) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return resized(x[..., top : top + rows, left : left + columns], size)


def conditions(
    teacher: StableDiffusionTeacher,
    template: str,
    captions: Sequence[str],
    *,
    words: str = "",
    negative: str = "",
    style: bool = False,
) -> tuple[Condition, Condition]:
    """The filled template once for each caption, and as often the negative prompt; `style`: by the LoRA's encoder.

    What an empty caption leaves at the ends of a prompt is taken away.
    """
    filled = (template.replace("{words}", words).replace("{caption}", caption) for caption in captions)
    prompts = [text.strip(" ,") for text in filled]
    cond, null = teacher.encode_prompts([*prompts, *[negative] * len(prompts)], style=style).chunk(2)
    return cond, null


def encode(teacher: StableDiffusionTeacher, x: Tensor) -> Tensor:
    """Scaled latents of pictures in [0, 1]."""
    return teacher.latent.encode(2 * x - 1)


def decode(teacher: StableDiffusionTeacher, z: Tensor, content: Tensor) -> Tensor:
    """Pictures in [0, 1] of the size of `content`."""
    return resized((teacher.latent.decode(z) / 2 + 0.5).clamp(0, 1), (content.shape[-2], content.shape[-1]))


def noise_like(z: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal numbers of the shape of z, for each picture from its own seed."""
    draws = [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(z)


def scheduler(kind: type[Scheduler], teacher: StableDiffusionTeacher, steps: int) -> Scheduler:
    """DDIM as Stable Diffusion is sampled: `steps` timesteps of even distance, from 1. It takes predicted noise."""
    made = kind(
        trained_betas=teacher.schedule.betas.tolist(), clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    made.set_timesteps(steps)
    return made


def prompted(score: Score, cond: Condition, null: Condition | None = None, guidance: float = 1.0) -> Noise:
    """The score under a prompt, `guided` away from `null` if there is one."""

    def noise(z_t: Tensor, t: int) -> Tensor:
        times = torch.full((len(z_t),), t, device=z_t.device)
        return guided(score, z_t, times, cond, cond if null is None else null, guidance).to(z_t.dtype)

    return noise


def invert(noise: Noise, inverse: DDIMInverseScheduler, z: Tensor) -> dict[int, Tensor]:
    """DDIM backwards from clean latents, which stand for those of the first timestep: z_t by t, the noisiest last."""
    times = inverse.timesteps.tolist()
    path = {times[0]: z}
    for t, after in pairwise(times):
        path[after] = inverse.step(noise(path[t], t), after, path[t]).prev_sample
    return path


def denoise(noise: Noise, sampler: DDIMScheduler, z_t: Tensor, times: Sequence[int]) -> Tensor:
    """DDIM along these timesteps, to the clean latent."""
    for t in times:
        z_t = sampler.step(noise(z_t, t), t, z_t).prev_sample
    return z_t


@contextmanager
def hooked(network: nn.Module, change: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Within the context the network is called with the positional and named arguments that `change` returns."""
    handle = network.register_forward_pre_hook(lambda _, args, named: change(args, named), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def load_controlnet(name: str, teacher: StableDiffusionTeacher) -> ControlNetModel:
    """A ControlNet of the teacher's family, in the number type of its U-Net.

    Args:
        name: Folder in the layout of diffusers, or hub id.

    Raises:
        UserError: It is not there, or belongs to another family.
    """
    source, unet = Source(name, "baseline.controlnet"), teacher.unet
    network = local_first(
        source,
        "",
        lambda **where: ControlNetModel.from_pretrained(source.location, torch_dtype=unet.dtype, **where),
        index="config.json",
    )
    wanted, found = (one.config.cross_attention_dim for one in (unet, network))
    if wanted != found:
        raise UserError(
            f"{source}: made for a base whose text has {found} channels, and that of teacher.base has {wanted}; take "
            "a ControlNet of its family"
        )
    return network.requires_grad_(False).eval().to(unet.device)


@contextmanager
def controlled(unet: nn.Module, network: ControlNetModel, hint: Tensor, scale: float) -> Iterator[None]:
    """Within the context a ControlNet adds its features to every call of the U-Net.

    Args:
        hint: (B, 3, H, W) in [0, 1], what the ControlNet looks at; the rows of a call are a multiple of B.
        scale: Factor on its features.
    """
    hint = hint.to(network.dtype)

    def add(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        down, middle = network(
            *args,
            encoder_hidden_states=named["encoder_hidden_states"],
            controlnet_cond=hint.repeat(len(args[0]) // len(hint), 1, 1, 1),
            conditioning_scale=scale,
            added_cond_kwargs=named.get("added_cond_kwargs"),
            return_dict=False,
        )
        return args, named | {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    with hooked(unet, add):
        yield
