from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_pipelines import TinySpec, build_unet, merge_kohya, write_model_index
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

Pipelines = Callable[..., Path]


def sample(teacher: StableDiffusionTeacher, batch: int = 2) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(3)
    z_t = torch.randn(batch, teacher.latent.channels, 6, 10, generator=generator)
    return z_t, torch.tensor([10, 700])[:batch], teacher.encode_prompts(["a cat", "a dog"][:batch])


def stock(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)


@pytest.fixture
def teacher(tiny_base: Path, tiny_lora: Path) -> StableDiffusionTeacher:
    return load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora), lora_strength=0.7)


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_style_is_the_unet_with_the_lora_merged(
    teacher: StableDiffusionTeacher, tiny_base: Path, tiny_lora: Path
) -> None:
    z_t, t, cond = sample(teacher)
    unet = stock(tiny_base)
    merge_kohya(unet, load_file(tiny_lora), strength=0.7)
    style = teacher.style(z_t, t, cond)
    torch.testing.assert_close(style, unet(z_t, t, encoder_hidden_states=cond.tokens).sample, atol=3e-5, rtol=0)
    assert (style - teacher.base(z_t, t, cond)).abs().max() > 1e-2
    (report,) = teacher.lora_reports
    assert report.matched == report.total


def test_frozen_and_in_evaluation_mode_for_good(teacher: StableDiffusionTeacher) -> None:
    torch.nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    z_t, t, cond = sample(teacher)
    assert not teacher.style(z_t.requires_grad_(), t, cond).requires_grad


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_of_the_unet_alone(tiny_base: Path, tiny_lora: Path, dtype: str) -> None:
    exact = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora))
    teacher = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora), dtype=dtype)
    assert {p.dtype for p in teacher.unet.parameters()} == {getattr(torch, dtype)}
    assert {p.dtype for p in teacher.latent.parameters()} == {torch.float32}
    z_t, t, cond = sample(teacher)
    for score, wanted in ((teacher.base, exact.base), (teacher.style, exact.style)):
        eps = score(z_t, t, cond)
        assert eps.dtype == torch.float32
        torch.testing.assert_close(eps, wanted(z_t, t, cond), atol=0.15, rtol=0)


@pytest.mark.parametrize(("dtype", "mixed"), [("bfloat16", False), ("float32", True)])
def test_a_network_in_16_bits_runs_outside_of_autocast(
    tiny_base: Path, tiny_lora: Path, dtype: Any, mixed: bool
) -> None:
    """On a GPU autocast would take the input of each normalisation to float32, and back for what follows."""
    teacher = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora), dtype=dtype)
    fake = LoraFakeScore(teacher, rank=2, target_modules=["to_q", "conv1"])
    seen: list[bool] = []
    teacher.unet.conv_norm_out.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    z_t, t, cond = sample(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        results = [teacher.style(z_t, t, cond), fake(z_t, t, cond)]
        seen.append(torch.is_autocast_enabled("cpu"))
    assert seen == [mixed, mixed, True]
    assert all(result.dtype == torch.float32 for result in results)
    results[1].square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in fake.trainable_parameters())


def test_second_unet_where_the_style_has_another_base(tiny_pipeline: Pipelines, tiny_lora: Path) -> None:
    base, other = tiny_pipeline(), tiny_pipeline(seed=1)
    teacher = load_stable_diffusion(base=str(base), lora=str(tiny_lora), style_base=str(other))
    assert teacher.style_unet is not None
    assert not hasattr(teacher.unet, "peft_config")
    z_t, t, cond = sample(teacher)
    torch.testing.assert_close(
        teacher.base(z_t, t, cond), stock(base)(z_t, t, encoder_hidden_states=cond.tokens).sample
    )
    unet = stock(other)
    merge_kohya(unet, load_file(tiny_lora), strength=1.0)
    wanted = unet(z_t, t, encoder_hidden_states=cond.tokens).sample
    torch.testing.assert_close(teacher.style(z_t, t, cond), wanted, atol=3e-5, rtol=0)
    alone = load_stable_diffusion(base=str(base), lora=None, style_base=str(other))
    torch.testing.assert_close(
        alone.style(z_t, t, cond), stock(other)(z_t, t, encoder_hidden_states=cond.tokens).sample
    )
    assert not torch.equal(alone.encode_prompts(["a cat"], style=True).tokens, alone.encode_prompts(["a cat"]).tokens)


def test_the_same_base_twice_is_one_unet(tiny_base: Path, tiny_lora: Path) -> None:
    again = f"{tiny_base.parent}/./{tiny_base.name}"
    assert load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora), style_base=again).style_unet is None


def test_bases_that_do_not_go_together(tiny_pipeline: Pipelines, tmp_path: Path) -> None:
    base = str(tiny_pipeline())
    for fields in ({"latent_channels": 4}, {"downscale": 4}):
        with pytest.raises(UserError, match=r"teacher\.style_base=.*share one latent space"):
            load_stable_diffusion(base=base, lora=None, style_base=str(tiny_pipeline(**fields)))
    other = shutil.copytree(tiny_pipeline(seed=1), tmp_path / "other")
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.02"))
    with pytest.raises(UserError, match=r"teacher\.style_base=.*noise levels differ"):
        load_stable_diffusion(base=base, lora=None, style_base=str(other))


def test_the_style_may_predict_v_where_the_base_predicts_noise(tiny_pipeline: Pipelines) -> None:
    base, other = tiny_pipeline(), tiny_pipeline(prediction_type="v_prediction", seed=1)
    teacher = load_stable_diffusion(base=str(base), lora=None, style_base=str(other))
    alone = load_stable_diffusion(base=str(other), lora=None)
    z_t, t, cond = sample(teacher)
    assert torch.equal(teacher.style(z_t, t, cond), alone.base(z_t, t, cond))
    torch.testing.assert_close(
        teacher.base(z_t, t, cond), stock(base)(z_t, t, encoder_hidden_states=cond.tokens).sample
    )


def test_without_any_style(tiny_base: Path) -> None:
    teacher = load_stable_diffusion(base=str(tiny_base), lora=None)
    assert not teacher.has_style
    with pytest.raises(UserError, match=r"teacher\.lora"):
        teacher.style(*sample(teacher))


def test_prompts_as_stable_diffusion_encodes_them(
    teacher: StableDiffusionTeacher, tiny_base: Path, tiny_lora: Path
) -> None:
    prompts = ["a cat", "", "a cat", "a thin dog"]
    ids = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")(
        prompts, padding="max_length", max_length=16, return_tensors="pt"
    ).input_ids
    encoder = CLIPTextModel.from_pretrained(tiny_base / "text_encoder")
    cond = teacher.encode_prompts(prompts)
    assert cond.tokens.shape == (4, 16, 16)
    torch.testing.assert_close(cond.tokens, encoder(ids).last_hidden_state.detach(), atol=1e-6, rtol=0)
    merge_kohya(encoder, load_file(tiny_lora), strength=0.7, prefix="lora_te_text_model_")
    styled = teacher.encode_prompts(prompts, style=True)
    torch.testing.assert_close(styled.tokens, encoder(ids).last_hidden_state.detach(), atol=2e-5, rtol=0)
    assert torch.equal(teacher.encode_prompts(prompts).tokens, cond.tokens)


def test_text_encoder_runs_once_per_prompt_and_can_be_dropped(teacher: StableDiffusionTeacher) -> None:
    (encoder,) = teacher.prompts.encoders
    seen: list[int] = []
    encoder.register_forward_hook(lambda module, args, kwargs, output: seen.append(len(args[0])), with_kwargs=True)
    cond = teacher.encode_prompts(["a", "b", "a"])
    teacher.encode_prompts(["b", "c"])
    assert seen == [2, 1]
    size = sum(p.numel() for p in teacher.parameters())
    teacher.drop_text_encoder()
    assert sum(p.numel() for p in teacher.parameters()) == size - sum(p.numel() for p in encoder.parameters())
    assert torch.equal(teacher.encode_prompts(["a", "b", "a"]).tokens, cond.tokens)
    with pytest.raises(UserError, match="'new one' was not encoded before the text encoder was dropped"):
        teacher.encode_prompts(["a", "new one"])


def test_long_prompts_are_cut_with_a_warning(teacher: StableDiffusionTeacher, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert teacher.encode_prompts(["short"]).tokens.shape == (1, 16, 16)
        assert not caplog.text
        assert teacher.encode_prompts(["a very long prompt indeed"]).tokens.shape == (1, 16, 16)
    assert "longer than 16 tokens" in caplog.text


def test_names_of_older_text_encoder_files(copied: Path, teacher: StableDiffusionTeacher) -> None:
    """Published checkpoints have one level more in the names than current transformers."""
    file = copied / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    old = load_stable_diffusion(base=str(copied), lora=None)
    assert torch.equal(old.encode_prompts(["a cat"]).tokens, teacher.encode_prompts(["a cat"]).tokens)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (3, 8)])
def test_odd_latents(teacher: StableDiffusionTeacher, size: tuple[int, int]) -> None:
    z_t = torch.randn(2, 8, *size)
    eps = teacher.style(z_t, torch.tensor([1, 999]), teacher.encode_prompts(["a", "b"]))
    assert eps.shape == z_t.shape
    assert eps.isfinite().all()


def test_batch_does_not_mix(teacher: StableDiffusionTeacher) -> None:
    z_t, t, cond = sample(teacher)
    one = torch.cat([teacher.style(z_t[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(teacher.style(z_t, t, cond), one, atol=1e-5, rtol=0)


# What can be wrong with the files: one clear message each, no chain of the hub's exceptions.


def refused(match: str, **arguments: object) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_stable_diffusion(**{"lora": None, **arguments})  # type: ignore[arg-type]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_folder_hub_id_and_lora(tiny_base: Path, tmp_path: Path) -> None:
    get = "hf download .* --local-dir"
    refused(rf"teacher\.base=.*/nowhere: .*no such folder.*{get}.*teacher\.base=", base=str(tmp_path / "nowhere"))
    refused(rf"teacher\.base=some/model: .*offline.*{get.replace('.*', 'some/model', 1)}", base="some/model")
    refused(r"teacher\.base=some/model", base="some/model", local_files_only=True)
    refused(r"teacher\.base=v1\.safetensors: no such file", base="v1.safetensors")
    refused(r"teacher\.base=v1\.ckpt: .*can run code.*\.safetensors version", base="v1.ckpt")
    refused(r"teacher\.style_base=a/b: ", base=str(tiny_base), style_base="a/b")
    refused(r"teacher\.lora=gone\.safetensors: no such file", base=str(tiny_base), lora="gone.safetensors")


def test_nothing_is_loaded_before_every_file_was_found(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded too early"))
    refused("no such file", base=str(tiny_base), lora="gone.safetensors")
    refused("no such folder", base=str(tiny_base), style_base="./gone")


def test_incomplete_folder(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(r"teacher\.base=.*its unet cannot be read", base=str(copied))
    shutil.rmtree(copied / "tokenizer")
    refused(r"teacher\.base=.*lacks tokenizer", base=str(copied))


def test_file_that_lacks_weights(copied: Path) -> None:
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_out.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(r"lacks weights, conv_out\.weight", base=str(copied))


@pytest.mark.parametrize(
    ("name", "components", "message"),
    [
        ("StableDiffusionInpaintPipeline", {"unet": []}, "StableDiffusionInpaintPipeline is a model for inpainting"),
        (
            "StableDiffusion3Pipeline",
            {"transformer": []},
            r"StableDiffusion3Pipeline is a transformer \(flow-matching\)",
        ),
        ("FluxPipeline", {"transformer": []}, r"FluxPipeline is a transformer \(flow-matching\) model"),
    ],
)
def test_other_pipelines(tmp_path: Path, name: str, components: dict[str, list[str | None]], message: str) -> None:
    write_model_index(tmp_path, name, components)
    refused(rf"teacher\.base=.*{message}", base=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "additional embeddings"),
        ({"num_class_embeds": 3}, "class conditioning"),
        ({"time_cond_proj_dim": 4}, "latent consistency"),
        ({"in_channels": 17}, "17 channels and gives 8.*inpainting"),
        ({"in_channels": 4, "out_channels": 4}, "works on 4 channels"),
        ({"cross_attention_dim": 24}, "width 24"),
    ],
)
def test_other_unets(copied: Path, settings: dict[str, object], message: str) -> None:
    UNet2DConditionModel.from_config(build_unet(TinySpec()).config, **settings).save_pretrained(copied / "unet")
    refused(rf"teacher\.base=.*{message}", base=str(copied))


@pytest.mark.parametrize(
    ("before", "after"), [('"epsilon"', '"sample"'), ("DDPMScheduler", "FlowMatchEulerDiscreteScheduler")]
)
def test_other_schedulers(copied: Path, before: str, after: str) -> None:
    file = copied / "scheduler" / "scheduler_config.json"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    refused("teacher.*(sample|FlowMatch|has no betas)", base=str(copied))
