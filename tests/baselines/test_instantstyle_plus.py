"""InstantStyle-Plus: the stock pipeline, with its scales at 0 and with them on; its layer in the published SDXL."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_parts import AS_PUBLISHED, Teacher, photos
from diffusers import (
    ControlNetModel,
    DDIMInverseScheduler,
    DDIMScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from smsff.baselines.diffusion import encode, invert, prompted, scheduler
from smsff.baselines.instantstyle_plus import load_instantstyle_plus
from smsff.errors import UserError
from smsff.teacher.base.families import family_config

OPTIONS: dict[str, Any] = {
    "content_scale": 0.3, "style_scale": 1.2, "control_scale": 0.4, "prompt": "{caption}", "negative": "a blur",
    "steps": 2, "guidance": 2.0, "resolution": 90,
}  # fmt: skip
SIZE = (64, 128)
CAPTIONS = ["a hill", "a sea"]
OFF = {"content_scale": 0.0, "style_scale": 0.0}


@pytest.fixture
def files(controlnet: Callable[[str], Path], ip_adapter: Path, image_encoder: Path) -> dict[str, str]:
    return {
        "controlnet": str(controlnet("sdxl")), "ip_adapter": str(ip_adapter), "image_encoder": str(image_encoder)
    }  # fmt: skip


@pytest.mark.parametrize("scales", [OFF, {}], ids=["off", "on"])
def test_it_is_the_stock_pipeline_from_the_inverted_photo(
    scales: dict[str, float], teacher: Teacher, files: dict[str, str], family_pipeline: Callable[..., Path]
) -> None:
    base, folder, options = teacher("sdxl"), family_pipeline("sdxl"), OPTIONS | scales
    x, style = photos(2, *SIZE), photos(2, 50, 40, seed=4)
    method = load_instantstyle_plus(copy.deepcopy(base), **files, **options)
    found = method(x, CAPTIONS, style=style, seeds=[0, 0])

    with torch.no_grad():
        inverse = scheduler(DDIMInverseScheduler, base, 2)
        path = invert(prompted(base.base, base.encode_prompts(CAPTIONS)), inverse, encode(base, x))
    sampler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **AS_PUBLISHED)
    network = ControlNetModel.from_pretrained(files["controlnet"])
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(folder, scheduler=sampler, controlnet=network)
    pipeline.set_progress_bar_config(disable=True)
    if scales is not OFF:
        adapter = Path(files["ip_adapter"])
        pipeline.load_ip_adapter(
            [str(adapter.parent)] * 2, subfolder="", weight_name=[adapter.name] * 2, image_encoder_folder=None
        )
        pipeline.set_ip_adapter_scale([0.3, {"up": {"block_0": [0.0, 1.2, 0.0]}}])
    for i, caption in enumerate(CAPTIONS):  # the pipeline takes the same pictures for a whole batch
        with torch.no_grad():
            shown: list[Tensor] = [method.embedded(one[i : i + 1]) for one in (x, style)]
        embeds = [torch.cat([torch.zeros_like(one), one]) for one in shown] if scales is not OFF else None
        wanted = pipeline(
            caption, image=x[i : i + 1], negative_prompt="a blur", latents=path[max(path)][i : i + 1],
            num_inference_steps=2, guidance_scale=2.0, controlnet_conditioning_scale=0.4, height=SIZE[0], width=SIZE[1],
            ip_adapter_image_embeds=embeds, output_type="pt",
        ).images  # fmt: skip
        torch.testing.assert_close(found[i : i + 1], wanted, atol=1e-5, rtol=0)


def test_rows_do_not_mix_and_each_picture_counts(teacher: Teacher, files: dict[str, str]) -> None:
    method = load_instantstyle_plus(copy.deepcopy(teacher("sdxl")), **files, **OPTIONS)
    x, style = photos(2, 50, 83), photos(2, 50, 40, seed=4)
    found = method(x, CAPTIONS, style=style, seeds=[0, 0])
    assert found.shape == x.shape
    alone = method(x[1:], CAPTIONS[1:], style=style[1:], seeds=[0])
    torch.testing.assert_close(alone, found[1:], atol=1e-5, rtol=0)
    other = method(x, CAPTIONS, style=style.flip(-1) * 0.5, seeds=[0, 0])
    assert (other - found).abs().max() > 1e-4


def test_the_style_goes_to_one_layer_of_the_published_network() -> None:
    """The second of the three attentions of the decoder's first block: ten cross-attentions of 70."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(family_config("sdxl").unet))
    crossed = [name for name in unet.attn_processors if ".attn2." in name]
    assert len(crossed) == 70
    assert sum(name.startswith("up_blocks.0.attentions.1.") for name in crossed) == 10
    assert [len(block.attentions) for block in unet.up_blocks[:1]] == [3]


def test_what_does_not_fit_is_named(teacher: Teacher, files: dict[str, str], tmp_path: Path) -> None:
    base = copy.deepcopy(teacher("sdxl"))
    tensors = load_file(files["ip_adapter"])
    save_file({name: x for name, x in tensors.items() if "to_v_ip" not in name}, tmp_path / "part.safetensors")
    wide = tensors | {"image_proj.proj.weight": torch.zeros(len(tensors["image_proj.proj.weight"]), 33)}
    save_file(wide, tmp_path / "wide.safetensors")
    (tmp_path / "no.safetensors").write_text("none")
    for name, message in (
        ("part", "no IP-Adapter for teacher.base"),
        ("wide", "do not belong together"),
        ("no", "cannot be read as safetensors"),
        ("absent", "cannot be read as safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            load_instantstyle_plus(
                copy.deepcopy(base), **files | {"ip_adapter": str(tmp_path / f"{name}.safetensors")}, **OPTIONS
            )
    with pytest.raises(UserError, match=r"baseline.image_encoder=.*CLIP image encoder"):
        load_instantstyle_plus(base, **files | {"image_encoder": str(tmp_path)}, **OPTIONS)
