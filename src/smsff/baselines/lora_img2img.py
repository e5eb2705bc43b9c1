"""Style LoRA by img2img: the photo is noised, and denoised by the base with the LoRA (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from smsff.baselines.diffusion import (
    at_working_size,
    conditions,
    decode,
    denoise,
    encode,
    noise_like,
    prompted,
    scheduler,
)
from smsff.teacher.stable_diffusion import StableDiffusionTeacher


class LoraImg2Img:
    """A `Baseline`: img2img with a style LoRA; without one, with the base alone.

    Args:
        teacher: Base and LoRA.
        prompt, words: Of the wanted picture, with {words} and {caption}.
        negative: The other prompt of the guidance.
        strength: Share of the steps that are taken: 0 is the photo, 1 begins with noise alone.
        steps: Of DDIM, for a strength of 1.
        guidance: Classifier-free guidance.
        resolution: Pictures are worked on at about resolution^2 pixels.
    """

    needs_style = False

    def __init__(
        self,
        teacher: StableDiffusionTeacher,
        *,
        prompt: str,
        words: str,
        negative: str,
        strength: float,
        steps: int,
        guidance: float,
        resolution: int | None,
    ) -> None:
        self.teacher, self.score = teacher, teacher.style if teacher.has_style else teacher.base
        self.prompt, self.words, self.negative = prompt, words, negative
        self.strength, self.steps, self.guidance, self.resolution = strength, steps, guidance, resolution

    @torch.no_grad()
    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`."""
        x = at_working_size(content, self.resolution, self.teacher)
        sampler = scheduler(DDIMScheduler, self.teacher, self.steps)
        times = sampler.timesteps.tolist()[self.steps - int(self.steps * self.strength) :]
        z_t = encode(self.teacher, x)
        if times:
            z_t = sampler.add_noise(z_t, noise_like(z_t, seeds), torch.tensor(times[:1]))
        prompts = {"words": self.words, "negative": self.negative}
        cond, null = conditions(self.teacher, self.prompt, captions, **prompts, style=True)
        z = denoise(prompted(self.score, cond, null, self.guidance), sampler, z_t, times)
        return decode(self.teacher, z, content)
