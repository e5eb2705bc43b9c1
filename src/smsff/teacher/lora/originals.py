"""How the original code of flow transformers names its layers, where LoRA files follow it instead of diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

_QKV, _ADDED = "attn.to_q attn.to_k attn.to_v", "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
_TIME = "timestep_embedder.linear"
_FLUX_DOUBLE = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED,
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
}
_FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_ZIMAGE = {"attention.qkv": "attention.to_q attention.to_k attention.to_v", "attention.out": "attention.to_out.0"}

_RULES: dict[str, dict[tuple[str, str], dict[str, str]]] = {
    "SD3Transformer2DModel": {
        ("joint_blocks.{i}.", "transformer_blocks.{i}."): {
            "x_block.attn.qkv": _QKV,
            "context_block.attn.qkv": _ADDED,
            "x_block.attn.proj": "attn.to_out.0",
            "context_block.attn.proj": "attn.to_add_out",
            "x_block.attn2.qkv": _QKV.replace("attn", "attn2"),
            "x_block.attn2.proj": "attn2.to_out.0",
            "x_block.mlp.fc1": "ff.net.0.proj",
            "x_block.mlp.fc2": "ff.net.2",
            "context_block.mlp.fc1": "ff_context.net.0.proj",
            "context_block.mlp.fc2": "ff_context.net.2",
            "x_block.adaLN_modulation.1": "norm1.linear",
            "context_block.adaLN_modulation.1": "norm1_context.linear",
        },
        ("", ""): {
            "x_embedder.proj": "pos_embed.proj",
            "t_embedder.mlp.0": f"time_text_embed.{_TIME}_1",
            "t_embedder.mlp.2": f"time_text_embed.{_TIME}_2",
            "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
            "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
            "final_layer.linear": "proj_out",
            "final_layer.adaLN_modulation.1": "norm_out.linear",
        },
    },
    "FluxTransformer2DModel": {
        ("double_blocks.{i}.", "transformer_blocks.{i}."): {
            **_FLUX_DOUBLE,
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
            "img_mod.lin": "norm1.linear",
            "txt_mod.lin": "norm1_context.linear",
        },
        ("single_blocks.{i}.", "single_transformer_blocks.{i}."): {
            "linear1": f"{_QKV} proj_mlp",
            "linear2": "proj_out",
            "modulation.lin": "norm.linear",
        },
        ("", ""): {
            **_FLUX_OUTSIDE,
            "time_in.in_layer": f"time_text_embed.{_TIME}_1",
            "time_in.out_layer": f"time_text_embed.{_TIME}_2",
            "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
            "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
            "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
            "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        },
    },
    "Flux2Transformer2DModel": {
        ("double_blocks.{i}.", "transformer_blocks.{i}."): {
            **_FLUX_DOUBLE,
            "img_mlp.0": "ff.linear_in",
            "img_mlp.2": "ff.linear_out",
            "txt_mlp.0": "ff_context.linear_in",
            "txt_mlp.2": "ff_context.linear_out",
        },
        ("single_blocks.{i}.", "single_transformer_blocks.{i}."): {
            "linear1": "attn.to_qkv_mlp_proj",
            "linear2": "attn.to_out",
        },
        ("", ""): {
            **_FLUX_OUTSIDE,
            "time_in.in_layer": f"time_guidance_embed.{_TIME}_1",
            "time_in.out_layer": f"time_guidance_embed.{_TIME}_2",
            "single_stream_modulation.lin": "single_stream_modulation.linear",
            "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
            "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        },
    },
    "ZImageTransformer2DModel": {
        **{(f"{name}.{{i}}.",) * 2: _ZIMAGE for name in ("layers", "noise_refiner", "context_refiner")},
        ("", ""): {
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        },
    },
}
"""{class: {(prefix in the original code, in diffusers): {layer there: layers here, in the order of its rows}}}."""


def original_layers(kind: str, layers: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names in the original code, and the layers of diffusers' model that each is made of, in the order of its rows.

    Args:
        layers: of the model, by name; rules for others are left out.
    """
    for (there, here), rules in _RULES.get(kind, {}).items():
        for original, own in rules.items():
            for i in count() if "{i}" in there else range(1):
                parts = tuple(f"{here}{name}".replace("{i}", str(i)) for name in own.split())
                if not all(part in layers for part in parts):
                    break
                yield f"{there}{original}".replace("{i}", str(i)), parts


def halves_swapped(name: str, rows: int, inputs: int) -> bool:
    """Whether the original code has shift before scale in this modulation, and diffusers scale before shift."""
    return name.endswith(("norm_out.linear", "norm1_context.linear")) and rows == 2 * inputs
