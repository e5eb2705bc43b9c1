"""InstantStyle-Plus (Wang et al. 2024): a style picture by IP-Adapters on SDXL, from the inverted photo.

The photo is inverted by DDIM under its caption, without guidance, and sampled from there. A tile ControlNet sees the
photo. One IP-Adapter shows the photo to all layers, a second one the style picture to the middle layer of the decoder's
first block, which carries style (Wang et al. 2024, InstantStyle). The authors invert by ReNoise; their guidance by a
style descriptor, off in their code, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMInverseScheduler, DDIMScheduler, StableDiffusionXLPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from smsff.baselines.diffusion import (
    at_working_size,
    conditions,
    controlled,
    decode,
    denoise,
    encode,
    hooked,
    invert,
    load_controlnet,
    prompted,
    scheduler,
)
from smsff.errors import UserError
from smsff.teacher.base.source import Source, local_first
from smsff.teacher.stable_diffusion import StableDiffusionTeacher
from smsff.weights.pipeline import PARTS


class InstantStylePlus:
    """A `Baseline` with a style picture.

    Args:
        teacher: SDXL; its U-Net is given two IP-Adapters here.
        network: A tile ControlNet.
        adapter: Weights of an IP-Adapter as the pipelines of diffusers take them.
        image_encoder: That of the IP-Adapter.
        content_scale, style_scale, control_scale: Factors on what the two IP-Adapters and the ControlNet add.
        prompt: Of the wanted picture, with {caption}.
        negative: The other prompt of the guidance.
        steps: Of DDIM, each way.
        guidance: Classifier-free guidance on the way back.
        resolution: Pictures are worked on at about resolution^2 pixels.

    Raises:
        UserError: The IP-Adapter does not fit the base or the image encoder.
    """

    needs_style = True

    def __init__(
        self,
        teacher: StableDiffusionTeacher,
        network: ControlNetModel,
        adapter: dict[str, Any],
        image_encoder: CLIPVisionModelWithProjection,
        *,
        content_scale: float,
        style_scale: float,
        control_scale: float,
        prompt: str,
        negative: str,
        steps: int,
        guidance: float,
        resolution: int | None,
    ) -> None:
        self.teacher, self.network, self.image_encoder = teacher, network, image_encoder
        self.scales = [content_scale, {"up": {"block_0": [0.0, style_scale, 0.0]}}]
        self.control_scale, self.prompt, self.negative = control_scale, prompt, negative
        self.steps, self.guidance, self.resolution = steps, guidance, resolution
        side = image_encoder.config.image_size
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side, do_rescale=False)
        self.pipeline = StableDiffusionXLPipeline(
            *[None] * 5, unet=teacher.unet, scheduler=scheduler(DDIMScheduler, teacher, steps)
        )
        try:
            self.pipeline.load_ip_adapter([adapter] * 2, subfolder="", weight_name=["", ""], image_encoder_folder=None)
            fits = adapter["image_proj"]["proj.weight"].shape[1] == image_encoder.config.projection_dim
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError("baseline.ip_adapter: no IP-Adapter for teacher.base") from error
        if not fits:
            raise UserError("baseline.ip_adapter and baseline.image_encoder do not belong together")

    @torch.no_grad()
    def __call__(
        self, content: Tensor, captions: Sequence[str], *, style: Tensor | None = None, seeds: Sequence[int]
    ) -> Tensor:
        """See `Baseline`; there is no noise to seed."""
        assert style is not None
        teacher, x = self.teacher, at_working_size(content, self.resolution, self.teacher)
        cond, null = conditions(teacher, self.prompt, captions, negative=self.negative)
        shown = [self.embedded(content), self.embedded(style)]

        def add(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            pad = len(args[0]) - len(x)  # the rows without guidance come first and see no picture
            images = [torch.cat([one.new_zeros(pad, *one.shape[1:]), one]) for one in shown]
            return args, named | {"added_cond_kwargs": named["added_cond_kwargs"] | {"image_embeds": images}}

        sampler = scheduler(DDIMScheduler, teacher, self.steps)
        times = sampler.timesteps.tolist()
        with hooked(teacher.unet, add):
            self.pipeline.set_ip_adapter_scale([0.0, 0.0])
            inverse = scheduler(DDIMInverseScheduler, teacher, self.steps)
            z_t = invert(prompted(teacher.base, cond), inverse, encode(teacher, x))[times[0]]
            self.pipeline.set_ip_adapter_scale(self.scales)
            with controlled(teacher.unet, self.network, x, self.control_scale):
                noise = prompted(teacher.base, cond, null, self.guidance)
                z = denoise(noise, sampler, z_t, times)
        return decode(teacher, z, content)

    def embedded(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] as the IP-Adapter takes them, (B, 1, D)."""
        pixels = self.processor(images=list(x.float().cpu()), return_tensors="pt").pixel_values
        out: Tensor = self.image_encoder(pixels.to(x.device, self.image_encoder.dtype)).image_embeds[:, None]
        return out.to(self.teacher.unet.dtype)


def load_instantstyle_plus(
    teacher: StableDiffusionTeacher,
    *,
    controlnet: str,
    ip_adapter: str,
    image_encoder: str,
    content_scale: float,
    style_scale: float,
    control_scale: float,
    prompt: str,
    negative: str,
    steps: int,
    guidance: float,
    resolution: int | None,
) -> InstantStylePlus:
    """Load what it needs beside the teacher; the others as in `InstantStylePlus`.

    Args:
        controlnet: Folder or hub id.
        ip_adapter: A .safetensors file.
        image_encoder: Folder or hub id.

    Raises:
        UserError: Something is not there or does not fit.
    """
    network, encoder = load_controlnet(controlnet, teacher), load_image_encoder(image_encoder)
    try:
        tensors = load_file(Path(ip_adapter).expanduser())
    except (OSError, SafetensorError) as error:
        raise UserError(f"baseline.ip_adapter={ip_adapter}: cannot be read as safetensors ({error})") from error
    adapter: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        adapter.setdefault(part, {})[rest] = value
    return InstantStylePlus(
        teacher,
        network,
        adapter,
        encoder.to(teacher.unet.device),
        content_scale=content_scale,
        style_scale=style_scale,
        control_scale=control_scale,
        prompt=prompt,
        negative=negative,
        steps=steps,
        guidance=guidance,
        resolution=resolution,
    )


def load_image_encoder(name: str) -> CLIPVisionModelWithProjection:
    """A CLIP image encoder with its projection, in float32.

    Raises:
        UserError: It is not there.
    """
    source = Source(name, "baseline.image_encoder")
    alone, inside = PARTS["image_encoder"][2]
    found = source.folder is not None and (source.folder / "config.json").is_file()
    place = (alone if found else inside).rstrip("/")
    network = local_first(
        source,
        place,
        lambda **where: CLIPVisionModelWithProjection.from_pretrained(source.location, dtype=torch.float32, **where),
        index=f"{place}/config.json",
    )
    return network.requires_grad_(False).eval()
