"""Style LoRA by img2img, with a ControlNet that holds on to the photo (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import ControlNetModel
from torch import Tensor

from smsff.baselines.diffusion import at_working_size, controlled, load_controlnet
from smsff.baselines.lora_img2img import LoraImg2Img
from smsff.teacher.stable_diffusion import StableDiffusionTeacher


class LoraControlNet:
    """A `Baseline`: `LoraImg2Img` while a tile ControlNet, whose hint is the photo itself, steers the U-Net.

    Args:
        img2img: What is steered.
        network: A ControlNet of the same family.
        scale: Factor on its features.
    """

    needs_style = False

    def __init__(self, img2img: LoraImg2Img, network: ControlNetModel, *, scale: float) -> None:
        self.img2img, self.network, self.scale = img2img, network, scale

    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`."""
        teacher = self.img2img.teacher
        hint = at_working_size(content, self.img2img.resolution, teacher)
        with controlled(teacher.style_unet or teacher.unet, self.network, hint, self.scale):
            return self.img2img(content, captions, seeds=seeds)


def load_lora_controlnet(
    teacher: StableDiffusionTeacher,
    *,
    controlnet: str,
    scale: float,
    prompt: str,
    words: str,
    negative: str,
    strength: float,
    steps: int,
    guidance: float,
    resolution: int | None,
) -> LoraControlNet:
    """Load the ControlNet, a folder or a hub id; the others as in `LoraControlNet` and `LoraImg2Img`."""
    network = load_controlnet(controlnet, teacher)
    img2img = LoraImg2Img(
        teacher,
        prompt=prompt,
        words=words,
        negative=negative,
        strength=strength,
        steps=steps,
        guidance=guidance,
        resolution=resolution,
    )
    return LoraControlNet(img2img, network, scale=scale)
