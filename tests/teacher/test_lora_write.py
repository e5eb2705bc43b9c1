from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from lora_files import TEXT_TARGETS, UNET_TARGETS, add_lora, run_text, run_unet, sd_models, xl_models
from peft import LoraConfig, inject_adapter_in_model
from safetensors import safe_open
from torch import nn

from smsff.errors import UserError
from smsff.teacher.lora.load import LoraFile, load_style_loras
from smsff.teacher.lora.write import save_style_lora


def keys_and_header(path: Path) -> tuple[set[str], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return set(file.keys()), file.metadata()


def test_kohya_names_and_header(tmp_path: Path) -> None:
    unet, text = sd_models()
    add_lora(unet, r".*(to_out\.0|conv_shortcut)", mixed=False)
    add_lora(text, TEXT_TARGETS, mixed=False)
    path = tmp_path / "new" / "style.safetensors"
    save_style_lora(
        path,
        unet=unet,
        text_encoders=(text,),
        adapter_name="trained",
        format="kohya",
        metadata={"ss_output_name": "style", "ss_network_dim": "9"},
    )
    keys, header = keys_and_header(path)
    layers = {key.split(".")[0] for key in keys}
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0" in layers
    assert "lora_te_text_model_encoder_layers_1_self_attn_out_proj" in layers
    assert keys == {f"{n}.{part}" for n in layers for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert header["ss_output_name"] == "style"
    assert header["ss_network_dim"] == "9"
    assert header["ss_network_alpha"] == "5.0"
    assert [file.name for file in path.parent.iterdir()] == ["style.safetensors"]


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_stock_pipeline_reads_sd(tmp_path: Path, format: str) -> None:
    """What diffusers makes of the file is the model it was written from: U-Net and text encoder."""
    unet, text = sd_models()
    base = run_unet(unet), run_text(text)
    mixed = format == "diffusers"  # diffusers does not keep apart the alphas of a kohya file that differ
    add_lora(unet, UNET_TARGETS, mixed=mixed)
    add_lora(text, TEXT_TARGETS, mixed=mixed)
    path = tmp_path / "style.safetensors"
    save_style_lora(path, unet=unet, text_encoders=(text,), adapter_name="trained", format=format, metadata={})
    wanted = run_unet(unet), run_text(text)
    unet, text = sd_models()
    parts = {"vae": None, "tokenizer": None, "scheduler": None, "safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline(unet=unet, text_encoder=text, requires_safety_checker=False, **parts)
    pipe.load_lora_weights(path)
    for model_output, want, plain in zip((run_unet(unet), run_text(text)), wanted, base, strict=True):
        torch.testing.assert_close(model_output, want, atol=1e-5, rtol=0)
        assert (want - plain).abs().max() > 1e-2


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_stock_pipeline_reads_sdxl(tmp_path: Path, format: str) -> None:
    models = xl_models()
    base = [run_unet(models[0]), *map(run_text, models[1:])]
    for model, targets in zip(models, (UNET_TARGETS, TEXT_TARGETS, TEXT_TARGETS), strict=True):
        add_lora(model, targets, mixed=format == "diffusers")
    path = tmp_path / "style.safetensors"
    save_style_lora(path, unet=models[0], text_encoders=models[1:], adapter_name="trained", format=format, metadata={})
    if format == "kohya":
        keys, header = keys_and_header(path)
        assert header["ss_base_model_version"] == "sdxl_base_v1-0"
        layers = {key.split(".")[0] for key in keys}
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in layers
        assert {layer.split("_")[1] for layer in layers} == {"unet", "te1", "te2"}
    wanted = [run_unet(models[0]), *map(run_text, models[1:])]
    unet, first, second = xl_models()
    pipe = StableDiffusionXLPipeline(
        unet=unet, text_encoder=first, text_encoder_2=second, vae=None, tokenizer=None, tokenizer_2=None, scheduler=None
    )
    pipe.load_lora_weights(path)
    for model_output, want, plain in zip(
        (run_unet(unet), run_text(first), run_text(second)), wanted, base, strict=True
    ):
        torch.testing.assert_close(model_output, want, atol=1e-5, rtol=0)
        assert (want - plain).abs().max() > 1e-2


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("make", [sd_models, xl_models])
def test_round_trip(tmp_path: Path, format: str, make: Callable[[], tuple[nn.Module, ...]]) -> None:
    """Ranks and alphas that differ between layers come back; so does the name of the base."""
    unet, *encoders = make()
    add_lora(unet, UNET_TARGETS)
    for encoder in encoders:
        add_lora(encoder, TEXT_TARGETS)
    path = tmp_path / "style.safetensors"
    save_style_lora(path, unet=unet, text_encoders=encoders, adapter_name="trained", format=format, metadata={})
    wanted = [run_unet(unet), *map(run_text, encoders)]
    unet, *encoders = make()
    (report,) = load_style_loras(unet, encoders, [LoraFile(path)])
    assert report.matched == report.total
    assert report.info.format == format
    assert report.info.family == ("SDXL" if make is xl_models else None)
    assert report.ranks == (3, 5)
    assert report.alphas == pytest.approx((5, 6) if format == "kohya" else (3, 5))
    for found, want in zip([run_unet(unet), *map(run_text, encoders)], wanted, strict=True):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def test_dtype_and_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, text = sd_models()
    path = tmp_path / "style.safetensors"
    common = {"adapter_name": "trained", "metadata": {}}
    with pytest.raises(UserError, match="no layer of the model has the LoRA adapter 'trained'"):
        save_style_lora(path, unet=unet, text_encoders=(text,), format="kohya", **common)
    add_lora(unet, r".*to_q")
    with pytest.raises(UserError, match="format='pickle' is not one of kohya, diffusers"):
        save_style_lora(path, unet=unet, format="pickle", **common)
    save_style_lora(path, unet=unet, text_encoders=(text,), format="diffusers", dtype=torch.float16, **common)
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"]
    before = path.read_bytes()
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError("disk full")

        patch.setattr("smsff.teacher.lora.write.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            save_style_lora(path, unet=unet, format="kohya", **common)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_v"], use_dora=True), unet, "dora")
    with pytest.raises(UserError, match="is a DoRA"):
        save_style_lora(path, unet=unet, adapter_name="dora", format="kohya", metadata={})
