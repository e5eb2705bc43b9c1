"""Style LoRA by img2img and with a ControlNet: without the LoRA they are the stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_parts import AS_PUBLISHED, Teacher, photos
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from safetensors.torch import save_file
from tiny_pipelines import kohya_tensors, merge_kohya
from torch import Tensor

from smsff.baselines.lora_controlnet import load_lora_controlnet
from smsff.baselines.lora_img2img import LoraImg2Img
from smsff.errors import UserError

OPTIONS: dict[str, Any] = {
    "prompt": "{words}, {caption}",
    "words": "ink",
    "negative": "a blur",
    "strength": 0.75,
    "steps": 3,
    "guidance": 4.0,
    "resolution": 80,
}
SEEDS = [5, 8]
SIZE = (64, 128)
PIPELINES = {
    "sd1": (StableDiffusionImg2ImgPipeline, StableDiffusionControlNetImg2ImgPipeline),
    "sdxl": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline),
}


def stock(family: str, folder: Path, x: Tensor, teacher: Any, **more: Any) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] of the stock pipeline, from the latents that the baseline encodes."""
    kind = PIPELINES[family]["controlnet" in more]
    made = {"controlnet": more.pop("controlnet")} if "controlnet" in more else {}
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **AS_PUBLISHED)
    pipeline = kind.from_pretrained(folder, scheduler=scheduler, **made)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=["ink, a hill", "ink"],
        negative_prompt=[OPTIONS["negative"]] * 2,
        image=teacher.latent.encode(2 * x - 1),
        strength=OPTIONS["strength"],
        num_inference_steps=OPTIONS["steps"],
        guidance_scale=OPTIONS["guidance"],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt",
        **more,
    ).images


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_img2img_without_the_lora_is_the_stock_pipeline(
    family: str, teacher: Teacher, family_pipeline: Callable[..., Path]
) -> None:
    base, x = teacher(family), photos(2, *SIZE)
    wanted = stock(family, family_pipeline(family), x, base)
    found = LoraImg2Img(base, **OPTIONS | {"resolution": 90})(x, ["a hill", ""], seeds=SEEDS)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_without_a_resolution_pictures_keep_their_size(teacher: Teacher) -> None:
    base, x = teacher("sd1"), photos(2, *SIZE)
    of_side = [
        LoraImg2Img(base, **OPTIONS | {"resolution": side})(x, ["a hill", ""], seeds=SEEDS) for side in (90, 45, None)
    ]
    assert torch.equal(of_side[2], of_side[0])
    assert not torch.equal(of_side[2], of_side[1])


def test_img2img_with_the_lora_is_that_of_the_merged_weights(
    teacher: Teacher, family_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    merged, x = teacher("sd1", dtype="float32"), photos(2, *SIZE)
    tensors = kohya_tensors(merged.unet, ["to_q", "to_v"])
    save_file(tensors, tmp_path / "lora.safetensors")
    merge_kohya(merged.unet, tensors, strength=0.6)
    adapted = teacher("sd1", lora=str(tmp_path / "lora.safetensors"), lora_strength=0.6)
    wanted, found = (LoraImg2Img(one, **OPTIONS)(x, ["", ""], seeds=SEEDS) for one in (merged, adapted))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_with_a_controlnet_and_without_the_lora_it_is_the_stock_pipeline(
    family: str, teacher: Teacher, family_pipeline: Callable[..., Path], controlnet: Callable[[str], Path]
) -> None:
    base, x, folder = teacher(family), photos(2, *SIZE), controlnet(family)
    network = ControlNetModel.from_pretrained(folder)
    wanted = stock(
        family, family_pipeline(family), x, base,
        controlnet=network, control_image=x, controlnet_conditioning_scale=0.7, height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    options = OPTIONS | {"resolution": 90}
    found = load_lora_controlnet(base, controlnet=str(folder), scale=0.7, **options)(x, ["a hill", ""], seeds=SEEDS)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    off = load_lora_controlnet(base, controlnet=str(folder), scale=0.0, **options)(x, ["a hill", ""], seeds=SEEDS)
    alone = LoraImg2Img(base, **options)(x, ["a hill", ""], seeds=SEEDS)
    torch.testing.assert_close(off, alone, atol=1e-6, rtol=0)
    assert (found - alone).abs().max() > 1e-3


def test_any_size_and_a_result_of_a_picture_alone(teacher: Teacher) -> None:
    img2img, x = LoraImg2Img(teacher("sd1"), **OPTIONS), photos(2, 50, 83)
    found = img2img(x, ["a", "b"], seeds=SEEDS)
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(img2img(x[1:], ["b"], seeds=SEEDS[1:]), found[1:], atol=1e-5, rtol=0)
    nothing = LoraImg2Img(teacher("sd1"), **OPTIONS | {"strength": 0.0})
    assert torch.equal(nothing(x, ["a", "b"], seeds=[1, 2]), nothing(x, ["c", ""], seeds=[3, 4]))


def test_a_controlnet_of_another_family_is_refused(teacher: Teacher, controlnet: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"baseline.controlnet=.*teacher.base has 16"):
        load_lora_controlnet(teacher("sd1"), controlnet=str(controlnet("sdxl")), scale=1.0, **OPTIONS)
    with pytest.raises(UserError, match=r"baseline.controlnet=nowhere"):
        load_lora_controlnet(teacher("sd1"), controlnet="nowhere", scale=1.0, **OPTIONS)
