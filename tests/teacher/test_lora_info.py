from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import ALGORITHMS, LAYERS, adapted_layers, file_tensors, kohya, sd_models, xl_models
from safetensors import safe_open
from safetensors.torch import save_file

from smsff.errors import UserError
from smsff.teacher.base.families import family_config
from smsff.teacher.lora.inspect import inspect_lora, refuse_other_base

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL"
DOWN, UP = "lora_down.weight", "lora_up.weight"


def write(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, metadata=metadata)
    return path


def attention(width: int, prefix: str = "lora_unet_down_blocks_1_") -> dict[str, tuple[int, ...]]:
    key = f"{prefix}attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{key}.{DOWN}": (4, width), f"{key}.{UP}": (320, 4), f"{key}.alpha": ()}


def pair(name: str, *, width: int = 320) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{DOWN}": (4, width), f"{name}.{UP}": (320, 4)}


XL_BLOCK = "lora_unet_input_blocks_7_1_transformer_blocks_9_ff_net_2"
TEXT_2 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize(
    ("shapes", "metadata", "family"),
    [
        (attention(768), {}, SD1),
        (attention(1024), {}, SD2),
        (attention(2048), {}, SDXL),
        (attention(768), {"ss_base_model_version": "sdxl_base_v1-0"}, SD1),  # shapes cannot be wrong, notes can
        (pair(TEXT_2), {}, SDXL),
        (pair(XL_BLOCK), {}, SDXL),
        (pair("lora_unet_label_emb_0_0"), {}, SDXL),
        (pair("lora_unet_mid_block_resnets_0_conv1"), {}, None),
        (pair("lora_unet_mid_block_resnets_0_conv1"), {"ss_base_model_version": "sd_v2_768_v"}, SD2),
        (pair("lora_unet_mid_block_resnets_0_conv1"), {"ss_base_model_version": "sd_v1"}, SD1),
        (pair("unet.a"), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, SDXL),
        (pair("unet.a"), {"modelspec.architecture": "stable-diffusion-v1/lora"}, SD1),
        (pair("lora_unet_double_blocks_0_img_attn_qkv"), {}, "Flux or another transformer (flow) model"),
        (pair("lora_unet_joint_blocks_0_x_block_attn_qkv"), {}, "Stable Diffusion 3"),
        (pair("transformer.transformer_blocks.0.attn.to_q"), {}, "a transformer (flow) model"),
    ],
)
def test_family(tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], family: str) -> None:
    assert inspect_lora(write(tmp_path / "l.safetensors", shapes, **metadata)).family == family


def test_context_width_of_lokr(tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes = {f"{key}.lokr_w1": (4, 32), f"{key}.lokr_w2_a": (80, 4), f"{key}.lokr_w2_b": (4, 32)}
    info = inspect_lora(write(tmp_path / "l.safetensors", shapes))
    assert (info.family, info.context_width, info.dense_elements) == (SD2, 1024, 320 * 1024)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_in_the_file(tmp_path: Path, algorithm: str) -> None:
    unet, _ = sd_models()
    layers = file_tensors(unet, algorithm)
    tensors = kohya(layers)
    save_file(tensors, tmp_path / "l.safetensors", metadata={"ss_output_name": "ink", "ss_sd_model_name": "v1-5.ckpt"})
    info = inspect_lora(tmp_path)
    assert info.path == tmp_path / "l.safetensors"
    assert info.layers == {"unet": len(layers)}
    assert info.tensors == sum(not key.endswith(".alpha") for key in tensors)
    assert info.ranks == (() if algorithm == "lokr full" else (3,))
    assert (info.title, info.base_model) == ("ink", "v1-5.ckpt")
    weights = sum(layer.weight.numel() for layer in adapted_layers(unet, LAYERS).values())
    assert info.dense_elements == (0 if algorithm in ("lora", "tucker") else weights)
    assert json.loads(json.dumps(info.as_dict()))["algorithms"] == list(info.algorithms)


@pytest.mark.parametrize(
    ("width", "base", "message"),
    [
        (768, "sdxl", rf"for {SD1}, but teacher.base is SDXL"),
        (768, "sd2", rf"for {SD1}, but teacher.base is {SD2}"),
        (1024, "sd1", rf"for {SD2}, but teacher.base is {SD1}"),
        (2048, "sd1", rf"for SDXL, but teacher.base is {SD1}"),
        (2048, "sd2", rf"for SDXL, but teacher.base is {SD2}"),
        (96, "sd1", "another architecture: its prompts are 96 wide and those of the base model 768"),
        (768, "sd1", None),
        (1024, "sd2", None),
        (2048, "sdxl", None),
    ],
)
def test_another_base_is_refused(tmp_path: Path, width: int, base: Any, message: str | None) -> None:
    info = inspect_lora(write(tmp_path / "l.safetensors", attention(width)))
    config = family_config(base).unet
    if message is None:
        refuse_other_base(info, config)
        return
    with pytest.raises(UserError, match=message) as caught:
        refuse_other_base(info, config)
    assert "\n" not in str(caught.value)


def test_small_models_and_unknown_files(tmp_path: Path) -> None:
    """Without a published width only SDXL and models without a U-Net can be told apart."""
    small, xl = sd_models()[0].config, xl_models()[0].config
    unknown = inspect_lora(write(tmp_path / "a.safetensors", pair("lora_unet_mid_block_resnets_0_conv1")))
    for config in (small, xl):
        refuse_other_base(unknown, config)
    te2 = inspect_lora(write(tmp_path / "b.safetensors", pair(TEXT_2)))
    refuse_other_base(te2, xl)
    with pytest.raises(UserError, match=r"for SDXL, but teacher\.style_base is another kind of model"):
        refuse_other_base(te2, small, key="teacher.style_base")
    flux = inspect_lora(write(tmp_path / "c.safetensors", pair("lora_unet_single_blocks_3_linear1")))
    for config in (small, xl):
        with pytest.raises(UserError, match="for Flux"):
            refuse_other_base(flux, config)


def test_only_the_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "l.safetensors", attention(768))

    class WithoutWeights:
        def __init__(self, *arguments: Any) -> None:
            self.file = safe_open(*arguments)

        def __enter__(self) -> WithoutWeights:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            assert name in ("keys", "metadata", "get_slice")
            return getattr(self.file, name)

    monkeypatch.setattr("smsff.teacher.lora.formats.safe_open", WithoutWeights)
    assert inspect_lora(path).ranks == (4,)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_pickles_are_not_opened(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    path = tmp_path / f"l{suffix}"
    path.write_bytes(b"x")
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("smsff.teacher.lora.formats.safe_open", opened)
    with pytest.raises(UserError, match=r"only \.safetensors files are read, for others can run code"):
        inspect_lora(path)


def test_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "l.safetensors", attention(768))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"l\.safetensors: the file cannot be read"):
        inspect_lora(path)
