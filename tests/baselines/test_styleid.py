"""StyleID: identities, the stock pipeline where its step is off, and its layers in the published networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_parts import AS_PUBLISHED, Teacher, photos
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

from smsff.baselines.diffusion import cropped_like, encode, invert, prompted, scheduler
from smsff.baselines.styleid import StyleAttention, StyleID, adain, self_attention
from smsff.errors import UserError
from smsff.teacher.base.families import family_config

OPTIONS: dict[str, Any] = {"gamma": 0.75, "temperature": 1.5, "layers": [6, 7, 8, 9, 10, 11], "steps": 3}
OPTIONS |= {"resolution": 90}
SIZE = (64, 128)
CALL: dict[str, Any] = {"captions": ["", ""], "seeds": [0, 0]}


def test_equal_statistics_change_nothing_and_others_become_the_styles() -> None:
    x, y = torch.randn(2, 4, 6, 9), 3 * torch.randn(2, 4, 8, 5) + 1
    torch.testing.assert_close(adain(x, x.flip(-1)), x, atol=1e-6, rtol=0)
    found = adain(x, y)
    torch.testing.assert_close(found.mean((-2, -1)), y.mean((-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((-2, -1)), y.std((-2, -1)), atol=1e-5, rtol=0)


def test_the_photo_as_its_own_style_gives_the_plain_prediction(teacher: Teacher) -> None:
    """Where inversion and sampling meet, gamma = 1 and T = 1 leave the U-Net as it is; each of them changes it."""
    base, z = copy.deepcopy(teacher("sd1")), torch.randn(2, 4, 8, 16)
    empty = base.encode_prompts([""]).expand(6)
    wanted = prompted(base.base, empty)(z.repeat(3, 1, 1, 1), 481)
    stock = base.unet.attn_processors
    names = self_attention(base.unet, OPTIONS["layers"])

    def found(*numbers: float, style: torch.Tensor = z) -> torch.Tensor:
        base.unet.set_attn_processor({**stock, **dict.fromkeys(names, StyleAttention(*numbers))})
        return prompted(base.base, empty)(torch.cat([z, style, z]), 481)

    torch.testing.assert_close(found(1.0, 1.0), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found(0.3, 1.0), wanted, atol=1e-5, rtol=0)
    assert (found(1.0, 3.0) - wanted)[-2:].abs().max() > 1e-4
    other = found(0.75, 1.5, style=z.flip(-1).roll(1, 0))
    torch.testing.assert_close(other[:2], wanted[:2], atol=1e-5, rtol=0)  # photo and style are seen as they are
    assert (other - wanted)[-2:].abs().max() > 1e-4


def test_the_photo_as_its_own_style_is_the_ddim_reconstruction(teacher: Teacher) -> None:
    """Of a U-Net with a small output, with which DDIM finds back on its own path; another style is not the photo."""
    base, x = copy.deepcopy(teacher("sd1")), photos(2, *SIZE)
    for parameter in base.unet.conv_out.parameters():
        parameter.data *= 1e-3
    identity = StyleID(base, **OPTIONS | {"gamma": 1.0, "temperature": 1.0})
    wanted = StyleID(base, **OPTIONS | {"layers": []})(x, style=x, **CALL)
    torch.testing.assert_close(identity(x, style=x, **CALL), wanted, atol=1e-5, rtol=0)
    other = photos(2, *SIZE, seed=9)
    difference = identity(x, style=other, **CALL) - StyleID(base, **OPTIONS | {"layers": []})(x, style=other, **CALL)
    assert difference.abs().max() > 5e-5


def test_without_its_attention_it_is_the_stock_pipeline(teacher: Teacher, family_pipeline: Callable[..., Path]) -> None:
    folder, base = family_pipeline("sd1"), teacher("sd1")
    x, style = photos(2, *SIZE), photos(2, 40, 40, seed=3)
    inverse = scheduler(DDIMInverseScheduler, base, OPTIONS["steps"])
    both = torch.cat([x, cropped_like(style, SIZE)])
    with torch.no_grad():
        path = invert(prompted(base.base, base.encode_prompts([""]).expand(4)), inverse, encode(base, both))
    sampler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **AS_PUBLISHED)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, scheduler=sampler)
    pipeline.set_progress_bar_config(disable=True)
    start = adain(*path[max(path)].chunk(2))
    sizes = {"height": SIZE[0], "width": SIZE[1], "guidance_scale": 1.0, "num_inference_steps": OPTIONS["steps"]}
    wanted = pipeline(["", ""], latents=start, output_type="pt", **sizes).images
    found = StyleID(base, **OPTIONS | {"layers": []})(x, style=style, **CALL)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_rows_do_not_mix_and_the_network_is_left_as_it_was(teacher: Teacher) -> None:
    base, x, style = teacher("sd1"), photos(2, 50, 83), photos(2, 60, 30, seed=3)
    before = base.unet.attn_processors
    method = StyleID(base, **OPTIONS)
    found = method(x, style=style, **CALL)
    alone = method(x[1:], style=style[1:], captions=[""], seeds=[3])
    assert found.shape == x.shape
    torch.testing.assert_close(alone, found[1:], atol=1e-5, rtol=0)
    assert base.unet.attn_processors == before


@pytest.mark.parametrize(
    ("family", "layers", "expected"),
    [
        ("sd1", [6, 7, 8, 9, 10, 11], [(block, i, 1) for block in (2, 3) for i in range(3)]),
        ("sd2", [7, 8, 9, 10, 11], [(2, 1, 1), (2, 2, 1), (3, 0, 1), (3, 1, 1), (3, 2, 1)]),
        ("sdxl", [2, 3], [(0, 2, 10), (1, 0, 2)]),
    ],
)
def test_layers_of_the_published_networks(family: Any, layers: list[int], expected: list[tuple[int, int, int]]) -> None:
    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel.from_config(dict(family_config(family).unet))
    assert self_attention(unet, layers) == [
        f"up_blocks.{block}.attentions.{i}.transformer_blocks.{j}.attn1.processor"
        for block, i, count in expected
        for j in range(count)
    ]
    with pytest.raises(UserError, match=r"baseline.layers: .* no attention in layer"):
        self_attention(unet, [0 if family != "sdxl" else 6])
