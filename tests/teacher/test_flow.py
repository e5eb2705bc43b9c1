"""Flow-matching teachers against the stock pipelines, on small models of the published structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flow import FAMILIES, build_flow
from torch import Tensor

from smsff.teacher.flow.calls import pack, unpack
from smsff.teacher.flow.load import load_flow
from smsff.teacher.score import guided
from smsff.teacher.stable_diffusion import StableDiffusionTeacher

PROMPTS = ["a cel drawing", "an oil painting of a dog"]
SIZE = (64, 96)
TOLD = 2.5
SCALE = 3.0

Flows = Callable[..., Path]


@pytest.fixture(scope="module")
def teachers(flow_pipeline: Flows) -> Callable[[str], StableDiffusionTeacher]:
    made: dict[str, StableDiffusionTeacher] = {}

    def teacher(family: str) -> StableDiffusionTeacher:
        if family not in made:
            made[family] = load_flow(base=str(flow_pipeline(family)), guidance=TOLD)
        return made[family]

    return teacher


def first_step(family: str, s: float, scale: float) -> tuple[Tensor, Tensor]:
    """What the stock pipeline has in its first step at noise level s: z_s, and the velocity that its scheduler gets."""
    pipeline, seen = build_flow(family), []
    step = pipeline.scheduler.step

    def spy(output: Tensor, t: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((sample.clone(), output.clone()))
        return step(output, t, sample, *args, **kwargs)

    pipeline.scheduler.step = spy
    options: dict[str, dict[str, Any]] = {
        "sd35": {"guidance_scale": scale},
        "flux1": {"guidance_scale": TOLD, "true_cfg_scale": scale, "negative_prompt": ["", ""]},
        "klein": {"guidance_scale": scale},
        "zimage": {"guidance_scale": scale - 1},
        "qwen": {"true_cfg_scale": scale, "negative_prompt": ["", ""]},
    }
    pipeline(
        prompt=list(PROMPTS), height=SIZE[0], width=SIZE[1], num_inference_steps=2, sigmas=[s, s / 2],
        output_type="latent", generator=torch.Generator().manual_seed(3), **options[family],
    )  # fmt: skip
    packed = seen[0][0].ndim == 3
    return tuple(unpack(x, SIZE[0] // 16) if packed else x for x in seen[0])  # type: ignore[return-value]


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_noise_prediction_is_what_the_stock_pipeline_hands_its_scheduler(
    family: str, scale: float, teachers: Callable[[str], StableDiffusionTeacher]
) -> None:
    teacher, t = teachers(family), torch.tensor([700, 700])
    ab, s = teacher.schedule.alpha_bar(t), teacher.schedule.flow_time(t).view(-1, 1, 1, 1)
    z_s, v = first_step(family, s[0].item(), scale)
    cond, null = teacher.encode_prompts(PROMPTS), teacher.encode_prompts(["", ""])
    z_t = z_s * (ab.sqrt() + (1 - ab).sqrt())
    eps = guided(teacher.base, z_t, t, cond, null, scale)
    expected = z_s + (1 - s) * v
    if family == "qwen" and scale != 1:  # the stock pipeline then scales each token to the length of the conditional
        one, ours = (pack((e - z_s) / (1 - s)) for e in (teacher.base(z_t, t, cond), eps))
        eps = z_s + (1 - s) * unpack(ours * one.norm(dim=-1, keepdim=True) / ours.norm(dim=-1, keepdim=True), 4)
    assert (eps - expected).abs().max() < 1e-5
    assert v.std() > 0.01
