"""Flow-matching teachers against the stock pipelines, on small models of the published structure."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from test_flow_lora import Files
from tiny_flow import FAMILIES, build_flow
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.flow.calls import flux1, pack, unpack
from smsff.teacher.flow.load import load_flow
from smsff.teacher.flow.published import PUBLISHED_FLOWS
from smsff.teacher.flow.quantise import quantise_transformer, quantised_layers
from smsff.teacher.latent import AutoencoderLatent
from smsff.teacher.score import guided
from smsff.teacher.stable_diffusion import StableDiffusionTeacher
from smsff.teacher.trainable import checkpointing

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


def gradients(teacher: StableDiffusionTeacher, fake: LoraFakeScore, cond: Condition) -> Tensor:
    """Of the fake's loss, with the style active when the backward pass begins."""
    torch.manual_seed(1)
    z = torch.randn(2, teacher.latent.channels, 8, 12)
    parameters = [parameter for _, parameter in fake.trainable_parameters()]
    loss = fake.loss(z, torch.randn_like(z), torch.tensor([21, 700]), cond).mean()
    with teacher.using("style"):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def with_style_and_fake(folder: Path, family: str, path: Path, **options: Any) -> tuple[Any, LoraFakeScore]:
    """A teacher with a style LoRA, and a fake that has moved."""
    files = Files(build_flow(family).transformer, family)
    save_file(files.peft("transformer.", files.pairs), path)
    teacher = load_flow(base=str(folder), lora=str(path), **options)
    fake = LoraFakeScore(teacher, rank=4, target_modules=("to_q", "to_v"))
    for _, parameter in fake.trainable_parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return teacher, fake


@pytest.mark.parametrize("family", FAMILIES)
def test_style_and_fake_on_one_transformer_leave_the_base_as_it_is(
    family: str, flow_pipeline: Flows, teachers: Callable[[str], StableDiffusionTeacher], tmp_path: Path
) -> None:
    plain = teachers(family)
    teacher, fake = with_style_and_fake(flow_pipeline(family), family, tmp_path / "style.safetensors", guidance=TOLD)
    z_t, t = torch.randn(2, teacher.latent.channels, 8, 12), torch.tensor([80, 900])
    cond = teacher.encode_prompts(PROMPTS)
    base = plain.base(z_t, t, plain.encode_prompts(PROMPTS))
    assert torch.equal(teacher.base(z_t, t, cond), base)
    scores = [base, teacher.style(z_t, t, cond), fake(z_t, t, cond).detach()]
    assert min((scores[i] - scores[i - 1]).abs().max() for i in range(3)) > 1e-3
    kept = gradients(teacher, fake, cond)
    teacher.unet.enable_gradient_checkpointing(checkpointing(teacher.adapters))
    torch.testing.assert_close(gradients(teacher, fake, cond), kept, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd35", "klein", "qwen"])
def test_the_encoders_gradient_is_that_of_finite_differences(family: str) -> None:
    vae = build_flow(family).vae.double()
    latent = AutoencoderLatent(vae, patch=2, gradient_checkpointing=True)
    x, d = torch.rand(1, 3, 40, 56).double() * 2 - 1, torch.randn(1, 3, 40, 56).double()
    z = latent.encode(x.requires_grad_())
    assert z.shape == (1, latent.channels, 6, 8)  # padded to 48 x 64
    weight = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((z * weight).sum(), x)
    with torch.no_grad():
        up, down = (latent.encode(x + h * d) for h in (1e-4, -1e-4))
        torch.testing.assert_close((gradient * d).sum(), ((up - down) * weight).sum() / 2e-4, rtol=1e-4, atol=1e-8)
        latent.drop_decoder()
        torch.testing.assert_close(latent.encode(x), z)


def test_latents_of_flux_2_have_the_statistics_of_its_batch_norm() -> None:
    vae = build_flow("klein").vae
    latent = AutoencoderLatent(vae, patch=2)
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    mean = vae.encode(x).latent_dist.mean
    patches = torch.nn.functional.pixel_unshuffle(mean, 2)
    expected = vae.bn(patches)  # in evaluation mode, without affine parameters
    torch.testing.assert_close(latent.encode(x), torch.nn.functional.pixel_shuffle(expected, 2))
    decoded = vae.decode(mean).sample[..., :30, :45]
    torch.testing.assert_close(latent.decode(latent.encode(x), (30, 45)), decoded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FluxKontextPipeline",
            r"teacher\.base=.*FluxKontextPipeline is not supported; flow teachers are .*teacher=klein",
        ),
        ("StableDiffusionPipeline", r"StableDiffusionPipeline is made for a U-Net teacher"),
    ],
)
def test_other_pipelines_are_refused_by_name(name: str, message: str, tmp_path: Path) -> None:
    index = {"_class_name": name, **({"unet": []} if name == "StableDiffusionPipeline" else {})}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        load_flow(base=str(tmp_path))


def test_what_a_flow_cannot_do_is_refused_before_weights_load(tmp_path: Path) -> None:
    for options, message in (
        ({"dtype": "float16"}, r"teacher\.dtype='float16'"),
        ({"style_base": "other/model"}, r"teacher\.style_base=other/model"),
        ({"quantise": "int3"}, r"teacher\.quantise='int3'"),
        ({}, r"not there|no such folder|model_index"),
    ):
        with pytest.raises(UserError, match=message):
            load_flow(base=str(tmp_path), local_files_only=True, **options)  # type: ignore[arg-type]


def test_a_distilled_model_is_loaded_with_a_warning(
    flow_pipeline: Flows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "klein").symlink_to(flow_pipeline("klein"))
    (tmp_path / "klein-turbo").symlink_to(flow_pipeline("klein"))
    for name, count in (("klein", 0), ("klein-turbo", 1)):
        with caplog.at_level(logging.WARNING):
            load_flow(base=str(tmp_path / name))
        assert sum("distilled" in record.message for record in caplog.records) == count


def test_prompts_are_kept_where_they_were_made_and_need_no_encoder_afterwards(flow_pipeline: Flows) -> None:
    teacher = load_flow(base=str(flow_pipeline("zimage")), dtype="bfloat16")
    before = teacher.encode_prompts(PROMPTS)
    assert before.mask is not None
    assert before.tokens.dtype == torch.bfloat16
    assert before.mask.sum(1).tolist() == [len(teacher.encode_prompts([p]).tokens[0]) for p in PROMPTS]
    teacher.drop_text_encoder()
    assert torch.equal(teacher.encode_prompts(PROMPTS).tokens, before.tokens)
    with pytest.raises(UserError, match="'new' was not encoded"):
        teacher.encode_prompts(["new"])


def test_gradients_of_the_fake_on_a_base_in_int8(flow_pipeline: Flows, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    found, path = [], tmp_path / "style.safetensors"
    for kind in (None, "int8"):
        teacher, fake = with_style_and_fake(flow_pipeline("sd35"), "sd35", path, quantise=kind)
        found.append(gradients(teacher, fake, teacher.encode_prompts(PROMPTS)))
    assert torch.cosine_similarity(*found, dim=0) > 0.99
    assert not torch.equal(*found)


def test_a_transformer_in_nf4_answers_nearly_alike() -> None:
    pytest.importorskip("bitsandbytes")
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 2}
    widths = {"joint_attention_dim": 64, "pooled_projection_dim": 64, "axes_dims_rope": (16, 24, 24)}
    net = FluxTransformer2DModel(**sizes, **widths, guidance_embeds=False).requires_grad_(False)
    cond = Condition(torch.randn(2, 8, 64), torch.randn(2, 64))
    inputs = torch.randn(2, 16, 8, 12), torch.tensor([0.2, 0.8]), cond, 1.0
    before = flux1(net, *inputs)
    quantise_transformer(net, "nf4")
    change = flux1(net, *inputs) - before
    assert 0 < change.norm() / before.norm() < 0.2


def test_published_shapes_have_the_published_sizes_and_all_blocks_can_be_quantised() -> None:
    sizes = {"klein": 3.88, "zimage": 6.15, "flux1": 11.9, "sd35": 2.24, "qwen": 20.4}
    for config in PUBLISHED_FLOWS.values():
        with torch.device("meta"):
            net = config.family.transformer.from_config(dict(config.transformer))
        total = sum(p.numel() for p in net.parameters())
        assert total / 1e9 == pytest.approx(sizes[config.family.name], abs=0.05)
        assert sum(layer.weight.numel() for layer in quantised_layers(net).values()) > 0.9 * total
