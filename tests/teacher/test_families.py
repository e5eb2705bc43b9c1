"""Stable Diffusion 1.5, 2.1 and SDXL through the one loader, against the stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from smsff.teacher.base.families import clip_tokenizer, family_config
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.score import guided
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

FAMILIES = ["sd1", "sd2", "sdxl"]
PROMPTS = ["a thin cat", "ink, the dog in it"]

Families = Callable[..., Path]


def sample(teacher: StableDiffusionTeacher) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(3)
    z_t = torch.randn(2, teacher.latent.channels, 8, 16, generator=generator)
    return z_t, torch.tensor([10, 700]), teacher.encode_prompts(PROMPTS)


def stock(folder: Path, family: str) -> Any:
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    extra = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    pipeline = kind.from_pretrained(folder, **extra)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def stock_noise(pipeline: Any, family: str, z_t: Tensor, t: Tensor, *, empty: bool = False) -> Tensor:
    """The stock U-Net call on the stock embeddings, as a noise prediction; `empty`: of the negative branch."""
    arguments: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    embeddings = pipeline.encode_prompt(prompt=PROMPTS, **arguments)
    added = None
    if family == "sdxl":
        cond, null, pooled, null_pooled = embeddings
        size = tuple(8 * side for side in z_t.shape[-2:])
        ids = pipeline._get_add_time_ids(
            size,
            (0, 0),
            size,
            dtype=cond.dtype,
            text_encoder_projection_dim=pipeline.text_encoder_2.config.projection_dim,
        )
        added = {"text_embeds": null_pooled if empty else pooled, "time_ids": ids.repeat(2, 1)}
    else:
        cond, null = embeddings
    output = pipeline.unet(z_t, t, encoder_hidden_states=null if empty else cond, added_cond_kwargs=added).sample
    if pipeline.scheduler.config.prediction_type == "epsilon":
        return output
    ab = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    return ab.sqrt() * output + (1 - ab).sqrt() * z_t


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_prediction_is_that_of_the_stock_pipeline(family: str, family_pipeline: Families) -> None:
    folder = family_pipeline(family)
    teacher, pipeline = load_stable_diffusion(base=str(folder), lora=None), stock(folder, family)
    z_t, t, cond = sample(teacher)
    wanted = stock_noise(pipeline, family, z_t, t)
    torch.testing.assert_close(teacher.base(z_t, t, cond), wanted, atol=1e-5, rtol=0)
    null = teacher.encode_prompts(["", ""])
    # What the stock pipeline takes for the negative branch: SDXL has zeros there, the others the empty prompt.
    empty = stock_noise(pipeline, family, z_t, t, empty=True)
    torch.testing.assert_close(teacher.base(z_t, t, null), empty, atol=1e-5, rtol=0)
    guided_noise = empty + 4.5 * (wanted - empty)
    torch.testing.assert_close(guided(teacher.base, z_t, t, cond, null, 4.5), guided_noise, atol=1e-4, rtol=0)
    assert (wanted - empty).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_size_scaling_and_prediction_are_read_from_the_checkpoint(family: str, family_pipeline: Families) -> None:
    folder = family_pipeline(family)
    teacher, published = load_stable_diffusion(base=str(folder), lora=None), family_config(family)  # type: ignore[arg-type]
    assert teacher.latent.downscale == 8
    assert teacher.latent.scaling == {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}[family]
    assert teacher.schedule.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert published.resolution == {"sd1": 512, "sd2": 768, "sdxl": 1024}[family]
    alphas = stock(folder, family).scheduler.alphas_cumprod
    torch.testing.assert_close(teacher.schedule.alphas_cumprod, alphas, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fake_score_learns_on_every_family(family: str, family_pipeline: Families) -> None:
    teacher = load_stable_diffusion(base=str(family_pipeline(family)), lora=None)
    fake = LoraFakeScore(teacher, rank=2, gradient_checkpointing=True)
    z, t, cond = sample(teacher)
    base = teacher.base(z, t, cond)
    torch.testing.assert_close(fake(z, t, cond), base, atol=1e-6, rtol=0)
    parameters = [p for _, p in fake.trainable_parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = fake.loss(z, torch.ones_like(z), t, cond).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(teacher.base(z, t, cond), base)


def test_sdxl_is_told_the_size_of_the_picture_it_works_on(family_pipeline: Families) -> None:
    teacher = load_stable_diffusion(base=str(family_pipeline("sdxl")), lora=None)
    z_t, t, cond = sample(teacher)
    assert teacher.time_ids(z_t).tolist() == [[64, 128, 0, 0, 64, 128]] * 2
    assert cond.pooled is not None
    assert cond.tokens.shape == (2, 20, 40)
    assert cond.pooled.shape == (2, 20)
    other = Condition(cond.tokens, cond.pooled.flip(0))
    assert not torch.allclose(teacher.base(z_t, t, other), teacher.base(z_t, t, cond))
    null = teacher.encode_prompts(["", "a cat"])
    assert null.pooled is not None
    assert not null.tokens[0].any()
    assert not null.pooled[0].any()
    assert null.tokens[1].any()


def test_clips_tokenizer_gives_the_published_ids() -> None:
    # https://huggingface.co/docs/transformers/model_doc/clip: "a photo of a cat".
    tokenizer = clip_tokenizer("sdxl")
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = [clip_tokenizer(f, i)("a", padding="max_length", max_length=5).input_ids[-2:]
              for f, i in (("sd1", 0), ("sd2", 0), ("sdxl", 0), ("sdxl", 1))]  # fmt: skip
    assert padded == [[49407, 49407], [0, 0], [49407, 49407], [0, 0]]


@pytest.mark.parametrize(
    ("family", "parameters"), [("sd1", 859_520_964), ("sd2", 865_910_724), ("sdxl", 2_567_463_684)]
)
def test_published_shapes_have_the_published_size(family: str, parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(family_config(family).unet))  # type: ignore[arg-type]
    assert sum(p.numel() for p in unet.parameters()) == parameters
