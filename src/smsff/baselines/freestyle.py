"""FreeStyle (He et al. 2024): words as a style, by two passes of the U-Net, without training or inversion.

At each step one pass sees the noisy latent and gives the skip connections, the other sees the clean latent of the photo
and gives the features that they are joined to, and the predicted noise. In the decoder's blocks with cross-attention
some channels of the features are raised where their mean is high, and the low frequencies of the skips are scaled. The
photo's edges are enhanced first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from diffusers.utils.torch_utils import fourier_filter
from PIL import ImageFilter
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from smsff.baselines.diffusion import (
    at_working_size,
    conditions,
    decode,
    denoise,
    encode,
    hooked,
    noise_like,
    prompted,
    scheduler,
)
from smsff.teacher.condition import Condition
from smsff.teacher.stable_diffusion import StableDiffusionTeacher


def joints(unet: UNet2DConditionModel) -> list[tuple[nn.Module, int, float]]:
    """The decoder's layers that join features to skips: layer, channels of the features, and which share of the widest
    they are, 0 where the block has no cross-attention."""
    found, before = [], unet.config.block_out_channels[-1]
    widest = before
    for block in unet.up_blocks:
        for layer in block.resnets:
            crossed = isinstance(block, CrossAttnUpBlock2D)
            found.append((layer, before, before / widest if crossed else 0.0))
            before = layer.out_channels
    return found


def raised(hidden: Tensor, channels: int, by: float) -> Tensor:
    """The first channels times (by h + 1), where h is the mean of all channels, from 0 to 1 in each picture."""
    mean = hidden.mean(1, keepdim=True, dtype=torch.float32)
    low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
    factor = by * (mean - low) / (high - low).clamp(min=1e-12) + 1
    return torch.cat([hidden[:, :channels] * factor.to(hidden.dtype), hidden[:, channels:]], 1)


def enhanced(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with PIL's EDGE_ENHANCE_MORE."""
    images = (to_pil_image(one.clamp(0, 1).cpu()).filter(ImageFilter.EDGE_ENHANCE_MORE) for one in x)
    return torch.stack([pil_to_tensor(image) for image in images]).to(x) / 255


class FreeStyle:
    """A `Baseline` from words.

    Args:
        teacher: The base; the authors' is SDXL.
        prompt, words: Of the wanted picture, with {words} and {caption}.
        b, s: At the widest layers: raise of the features, factor on the skips' low frequencies; 1 changes nothing.
        n: Channels that are raised at the widest layers.
        b_fine, s_fine: The same at layers of half this width, where the first half of the channels is raised.
        enhance: Whether the photo's edges are enhanced.
        steps: Of DDIM.
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
        b: float,
        s: float,
        n: int,
        b_fine: float,
        s_fine: float,
        enhance: bool,
        steps: int,
        guidance: float,
        resolution: int | None,
    ) -> None:
        self.teacher, self.prompt, self.words, self.enhance = teacher, prompt, words, enhance
        self.steps, self.guidance, self.resolution = steps, guidance, resolution
        self.factors = {1.0: (b, s, n), 0.5: (b_fine, s_fine, None)}

    @torch.no_grad()
    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`."""
        x = at_working_size(content, self.resolution, self.teacher)
        clean = encode(self.teacher, enhanced(x) if self.enhance else x)
        sampler = scheduler(DDIMScheduler, self.teacher, self.steps)
        times = sampler.timesteps.tolist()
        cond, null = conditions(self.teacher, self.prompt, captions, words=self.words)
        noise = prompted(lambda *row: self.joined(clean, *row), cond, null, self.guidance)
        z_t = sampler.add_noise(clean, noise_like(clean, seeds), torch.tensor(times[:1]))
        return decode(self.teacher, denoise(noise, sampler, z_t, times), content)

    def joined(self, clean: Tensor, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The noise that the base predicts for the clean latents with the skips of the noisy ones z_t."""
        rows = torch.cat([z_t, clean.repeat(len(z_t) // len(clean), 1, 1, 1)])
        with self.exchanged():
            return self.teacher.base(rows, t.repeat(2), cond.repeat(2))[len(z_t) :]

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Within the context the second half of the rows has the skips of the first, and both are scaled."""
        with ExitStack() as stack:
            for layer, channels, share in joints(self.teacher.unet):
                stack.enter_context(hooked(layer, self._exchange(channels, share)))
            yield

    def _exchange(self, channels: int, share: float) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        def change(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            hidden, skip = args[0].split([channels, args[0].shape[1] - channels], 1)
            noisy = skip.chunk(2)[0]
            if share in self.factors:
                b, s, count = self.factors[share]
                hidden = raised(hidden, channels // 2 if count is None else count, b - 1)
                noisy = fourier_filter(noisy, threshold=1, scale=s)
            return (torch.cat([hidden, noisy.repeat(2, 1, 1, 1)], 1), *args[1:]), named

        return change
