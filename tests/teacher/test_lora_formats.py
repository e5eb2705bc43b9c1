"""Files of every format, written here, against the weights that the format's authors define, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from lora_files import (
    ALGORITHMS,
    LAYERS,
    TEXT_LAYERS,
    file_tensors,
    kohya,
    load_style_lora,
    merge,
    merged_weights,
    reference_delta,
    run_text,
    run_unet,
    sd_models,
    xl_models,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from smsff.teacher.lora.load import LoraFile, load_style_loras
from smsff.teacher.lora.names import sgm_name


def assert_weights(unet: nn.Module, layers: dict[str, dict[str, Tensor]], strength: float) -> None:
    """base + strength * change, to 1e-6, for every layer of the file."""
    original, found = sd_models()[0], merged_weights(unet)
    assert found.keys() == layers.keys()
    for name, tensors in layers.items():
        weight = original.get_submodule(name).weight
        wanted = weight.double() + reference_delta(tensors, weight, strength)
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithm(tmp_path: Path, algorithm: str) -> None:
    """Linear layers, 1x1 and 3x3 convolutions, one with a stride; weights and the network's output."""
    unet, _ = sd_models()
    layers = file_tensors(unet, algorithm)
    save_file(kohya(layers), tmp_path / "l.safetensors")
    report = load_style_lora(unet, None, tmp_path / "l.safetensors", strength=0.7)
    assert_weights(unet, layers, 0.7)
    merged, base = sd_models()[0], run_unet(sd_models()[0])
    merge(merged, layers, 0.7)
    torch.testing.assert_close(run_unet(unet), run_unet(merged), atol=1e-5, rtol=0)
    assert (run_unet(merged) - base).abs().max() > 1e-2
    assert report.total == report.matched == sum(len(tensors) - 1 for tensors in layers.values())
    assert ALGORITHMS[algorithm][0] in report.info.algorithms
    assert report.info.format == "kohya"
    if algorithm == "lokr full":  # has neither rank nor, in effect, alpha
        assert (report.ranks, report.alphas) == ((), ())
    else:
        assert report.ranks == (3,)
        assert report.alphas == pytest.approx((2.0,))


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
@pytest.mark.parametrize("strength", [0.0, 1.0, -0.5])
def test_strength_interpolates(tmp_path: Path, algorithm: str, strength: float) -> None:
    unet, _ = sd_models()
    layers = file_tensors(unet, algorithm)
    save_file(kohya(layers), tmp_path / "l.safetensors")
    load_style_lora(unet, None, tmp_path / "l.safetensors", strength=strength)
    assert_weights(unet, layers, strength)
    if strength == 0:
        torch.testing.assert_close(run_unet(unet), run_unet(sd_models()[0]), atol=1e-6, rtol=0)


def test_names_of_lycoris(tmp_path: Path) -> None:
    unet, _ = sd_models()
    layers = file_tensors(unet, "lora")
    save_file(kohya(layers, "lycoris_"), tmp_path / "l.safetensors")
    report = load_style_lora(unet, None, tmp_path / "l.safetensors")
    assert report.info.format == "lycoris"
    assert_weights(unet, layers, 1.0)


@pytest.mark.parametrize(
    ("prefix", "down", "up"),
    [
        ("unet.{}", "lora_A.weight", "lora_B.weight"),
        ("{}", "lora_A.weight", "lora_B.weight"),
        ("unet.{}", "lora.down.weight", "lora.up.weight"),
        ("{}", "lora.down.weight", "lora.up.weight"),
        ("base_model.model.{}", "lora_A.weight", "lora_B.weight"),
        ("base_model.model.{}", "lora_A.default.weight", "lora_B.default.weight"),
        ("unet.base_model.model.{}", "lora_A.weight", "lora_B.weight"),
        ("diffusion_model.{}", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_dotted_names(tmp_path: Path, prefix: str, down: str, up: str) -> None:
    """diffusers and peft, without an alpha: the scale is 1."""
    unet, _ = sd_models()
    layers = file_tensors(unet, "lora")
    for tensors in layers.values():
        tensors["lora_up.weight"] *= 2 / 3  # what the reference makes of alpha
    named = {f"{prefix.format(n)}.{down}": t["lora_down.weight"] for n, t in layers.items()}
    named |= {f"{prefix.format(n)}.{up}": t["lora_up.weight"] for n, t in layers.items()}
    save_file(named, tmp_path / "l.safetensors")
    report = load_style_lora(unet, None, tmp_path / "l.safetensors")
    assert report.matched == report.total == 2 * len(layers)
    for tensors in layers.values():
        tensors["lora_up.weight"] *= 3 / 2
    assert_weights(unet, layers, 1.0)


def test_old_attention_processors_and_text(tmp_path: Path) -> None:
    """Before it used peft, diffusers kept LoRAs in attention processors, and text layers under names of its own."""
    unet, text = sd_models()
    targets, text_targets = ("to_q", "to_k", "to_out.0"), TEXT_LAYERS
    layers, text_layers = file_tensors(unet, "lora", targets), file_tensors(text, "lora", text_targets)
    named = {}
    for part, some in (("unet", layers), ("text_encoder", text_layers)):
        for name, tensors in some.items():
            block, _, layer = name.removesuffix(".0").rpartition(".")
            old = f"{block}.processor.{layer}_lora"
            if part == "text_encoder":
                block = f"text_model.{block}"
                projection = f"to_{layer.removesuffix('_proj')}_lora"
                old = f"{block}.{layer}.lora_linear_layer" if layer == "fc1" else f"{block}.{projection}"
            for end in ("down", "up"):
                scale = 2 / 3 if end == "up" else 1
                named[f"{part}.{old}.{end}.weight"] = tensors[f"lora_{end}.weight"] * scale
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight" in named
    assert "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight" in named
    save_file(named, tmp_path / "l.safetensors")
    report = load_style_lora(unet, text, tmp_path / "l.safetensors")
    assert report.matched == report.total == len(named)
    assert_weights(unet, layers, 1.0)
    merged = sd_models()[1]
    merge(merged, text_layers, 1.0)
    torch.testing.assert_close(run_text(text), run_text(merged), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=6, use_dora=True),
        LoraConfig(r=4, lora_alpha=6, use_rslora=True, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 1}),
        LoHaConfig(r=4, alpha=6, rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 1}, use_effective_conv2d=True),
        LoKrConfig(r=2, alpha=6, use_effective_conv2d=True, alpha_pattern={"conv1": 1}),
        LoKrConfig(r=2, alpha=6, decompose_both=True, decompose_factor=4),
        LoKrConfig(r=64, alpha=6, rank_pattern={"to_q": 32}),
    ],
    ids=["dora", "rslora", "loha", "lokr", "lokr both", "lokr full"],
)
def test_saved_by_peft(tmp_path: Path, config: PeftConfig) -> None:
    """peft writes the file and is the judge of what it means."""
    config.target_modules = ["to_q", "to_out.0", "conv1", "proj_in"]
    model = get_peft_model(sd_models()[0], config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".default" in name:
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.data = noise.abs() + 0.5 if "magnitude" in name else noise
    model.save_pretrained(tmp_path)
    unet, _ = sd_models()
    base = run_unet(unet)
    report = load_style_lora(unet, None, tmp_path)
    assert report.info.format == "peft"
    assert report.matched == report.total
    torch.testing.assert_close(run_unet(unet), run_unet(model), atol=2e-5, rtol=1e-5)
    assert (run_unet(model) - base).abs().max() > 1e-2


def xl_names(unet: nn.Module, layers: dict[str, dict[str, Tensor]], style: str) -> dict[str, dict[str, Tensor]]:
    if style == "diffusers":
        return layers
    names = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return {sgm_name(name, names) or name: tensors for name, tensors in layers.items()}


@pytest.mark.parametrize("style", ["sgm", "diffusers"])
def test_sdxl(tmp_path: Path, style: str) -> None:
    """Names of the original code as kohya's scripts write them, and those of diffusers; both text encoders.

    The stock pipeline reads the same file: where it agrees, the names mean what others take them for.
    """
    models = xl_models()
    extra = ("conv_shortcut", "upsamplers.0.conv", "linear_1", "linear_2", "attn2.to_k")
    sets = [file_tensors(models[0], "lora", (*LAYERS, *extra))]
    sets += [file_tensors(model, "lora", TEXT_LAYERS) for model in models[1:]]
    tensors = kohya(xl_names(models[0], sets[0], style))
    tensors |= kohya(sets[1], "lora_te1_text_model_") | kohya(sets[2], "lora_te2_")
    path = tmp_path / "l.safetensors"
    save_file(tensors, path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    if style == "sgm":
        for name in (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "input_blocks_3_0_op",
            "output_blocks_2_2_conv",
        ):
            assert f"lora_unet_{name}.alpha" in tensors
        for name in (
            "middle_block_2_in_layers_2",
            "time_embed_2",
            "label_emb_0_0",
            "output_blocks_0_0_skip_connection",
        ):
            assert f"lora_unet_{name}.alpha" in tensors
    (report,) = load_style_loras(models[0], models[1:], [LoraFile(path, 0.7)])
    assert report.matched == report.total
    assert report.info.family == "SDXL"
    merged = xl_models()
    for model, layers in zip(merged, sets, strict=True):
        merge(model, layers, 0.7)
    for run, model, want in zip((run_unet, run_text, run_text), models, merged, strict=True):
        torch.testing.assert_close(run(model), run(want), atol=1e-5, rtol=0)
    if style == "diffusers":
        return  # the stock loader does not know its own names of the embeddings in kohya's notation
    stock = xl_models()
    parts = dict.fromkeys(("vae", "tokenizer", "tokenizer_2", "scheduler"))
    pipe = StableDiffusionXLPipeline(unet=stock[0], text_encoder=stock[1], text_encoder_2=stock[2], **parts)
    pipe.load_lora_weights(path, adapter_name="a")
    pipe.set_adapters(["a"], [0.7])
    for run, model, want in zip((run_unet, run_text, run_text), stock, merged, strict=True):
        torch.testing.assert_close(run(model), run(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr"])
def test_text_encoder_of_any_algorithm(tmp_path: Path, algorithm: str) -> None:
    unet, text = sd_models()
    layers, text_layers = file_tensors(unet, algorithm), file_tensors(text, algorithm, TEXT_LAYERS)
    save_file(kohya(layers) | kohya(text_layers, "lora_te_text_model_"), tmp_path / "l.safetensors")
    report = load_style_lora(unet, text, tmp_path / "l.safetensors", strength=0.7)
    assert report.adapts_text
    assert report.matched == report.total
    merged = sd_models()[1]
    merge(merged, text_layers, 0.7)
    torch.testing.assert_close(run_text(text), run_text(merged), atol=1e-5, rtol=0)


def test_saved_alpha_patterns_of_each_part(tmp_path: Path) -> None:
    """diffusers' header has a configuration for each part; a pattern is matched as peft does it."""
    unet, text = sd_models()
    layers, text_layers = file_tensors(unet, "lora"), file_tensors(text, "lora", TEXT_LAYERS)
    named = {}
    for part, some in (("unet", layers), ("text_encoder.text_model", text_layers)):
        for name, t in some.items():
            named[f"{part}.{name}.lora_A.weight"] = t["lora_down.weight"]
            named[f"{part}.{name}.lora_B.weight"] = t["lora_up.weight"]
    header = {"unet.r": 3, "unet.lora_alpha": 7, "unet.alpha_pattern": {"to_q|proj_in": 2}}
    header |= {"text_encoder.r": 3, "text_encoder.lora_alpha": 5}
    save_file(named, tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    report = load_style_lora(unet, text, tmp_path / "l.safetensors")
    assert report.alphas == pytest.approx((2, 5, 7))
    found, original = merged_weights(unet), sd_models()[0]
    for name, tensors in layers.items():
        weight = original.get_submodule(name).weight
        alpha = 2 if name.endswith(("to_q", "proj_in")) else 7
        wanted = weight.double() + reference_delta(tensors, weight, alpha / 2)  # the reference has alpha 2
        torch.testing.assert_close(found[name], wanted, atol=1e-6, rtol=1e-6)
