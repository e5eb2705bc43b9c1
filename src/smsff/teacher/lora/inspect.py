"""Which base model a LoRA file is for, from its header alone, so that a mismatch is found before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smsff.errors import UserError
from smsff.teacher.lora.formats import TEXT, UNET, LayerKeys, LoraHeader, read_header

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL"

# The width of the prompt embeddings, which cross-attention takes in.
_BY_CONTEXT = {768: SD1, 1024: SD2, 2048: SDXL}
# Parts of layer names that no U-Net of Stable Diffusion has, and the kind of model that has them.
_FOREIGN = (
    ("double_blocks", "Flux or another transformer (flow) model"),
    ("single_blocks", "Flux or another transformer (flow) model"),
    ("single_transformer_blocks", "Flux or another transformer (flow) model"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("lora_transformer_", "a transformer (flow) model"),
    ("lora_te3_", "a transformer (flow) model"),
    ("lora_prior_", "Stable Cascade"),
)
_TRANSFORMER = re.compile(r"(transformer_blocks|layers|noise_refiner|context_refiner)[._]\d")
"""Beginnings of names of layers of flow transformers; in U-Nets they stand inside of blocks."""
FLOWS = {
    "SD3Transformer2DModel": "Stable Diffusion 3",
    "FluxTransformer2DModel": "FLUX.1",
    "Flux2Transformer2DModel": "FLUX.2",
    "ZImageTransformer2DModel": "Z-Image",
    "QwenImageTransformer2DModel": "Qwen-Image",
}
"""Kind of base by the class of its transformer."""
_KOHYA_VERSIONS = (("sdxl", SDXL), ("sd_v1", SD1), ("sd_v2", SD2), ("sd3", "Stable Diffusion 3"), ("flux", "Flux"))
_ARCHITECTURES = (
    ("stable-diffusion-v1", SD1),
    ("stable-diffusion-v2", SD2),
    ("stable-diffusion-xl", SDXL),
    ("stable-diffusion-3", "Stable Diffusion 3"),
    ("flux", "Flux"),
)


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA file says about itself.

    Attributes:
        format: whose names it uses: ``kohya``, ``lycoris``, ``peft`` or ``diffusers``.
        algorithms: as `LayerKeys.algorithm`.
        family: the kind of base model it was made for; None if nothing in it tells.
        context_width: width of the prompt embeddings it was made for; None if it does not touch cross-attention.
        ranks: that occur, ascending; a LoKr without decomposition has none.
        layers: how many layers it adapts, by part: ``unet``, ``text_encoder``, ``text_encoder_2``.
        tensors: how many there are, alphas aside.
        dense_elements: weight elements of the layers whose change is kept at full size (LoHa, LoKr, DoRA).
        unusable: names of what the file says about alpha and rank beside its tensors and cannot be applied.
        base_model, title: as the training program noted them in the header; empty if it did not.
    """

    path: Path
    format: str
    algorithms: tuple[str, ...]
    family: str | None
    context_width: int | None
    ranks: tuple[int, ...]
    layers: dict[str, int]
    tensors: int
    dense_elements: int
    unusable: tuple[str, ...]
    base_model: str
    title: str

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self) | {"path": str(self.path)}


def inspect_lora(path: str | Path) -> LoraInfo:
    """`describe` for a file."""
    return describe(read_header(path))


def describe(header: LoraHeader) -> LoraInfo:
    """What a LoRA file says by its header (names, shapes and notes; no weights)."""
    layers = {part: sum(layer.part == part for layer in header.layers) for part in (UNET, *TEXT)}
    ranks = {rank_of(layer, header.shapes) for layer in header.layers}
    context = _context_width(header)
    notes = header.metadata
    return LoraInfo(
        path=header.path,
        format=header.format,
        algorithms=tuple(sorted({layer.algorithm for layer in header.layers if layer.algorithm})),
        family=_family(header, context),
        context_width=context,
        ranks=tuple(sorted(rank for rank in ranks if rank is not None)),
        layers={part: count for part, count in layers.items() if count},
        tensors=sum(not key.endswith(".alpha") for key in header.shapes),
        dense_elements=sum(
            _weight_elements({role: header.shapes[key] for role, key in layer.keys.items()})
            for layer in header.layers
            if layer.algorithm not in (None, "LoRA", "LoRA Tucker")
        ),
        unusable=header.unusable,
        base_model=notes.get("ss_sd_model_name") or notes.get("ss_base_model_version", ""),
        title=notes.get("modelspec.title") or notes.get("ss_output_name", ""),
    )


def rank_of(layer: LayerKeys, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank r that alpha is divided by; None for a layer without one or with tensors missing."""
    for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if role in layer.keys:
            return shapes[layer.keys[role]][0]
    return None


def refuse_text_alone(info: LoraInfo) -> None:
    """Refuse a file that changes text encoders alone: a style is a change of the U-Net.

    Raises:
        UserError: there is no layer of the U-Net in it.
    """
    if UNET not in info.layers:
        names = " and ".join(part.replace("_", " ") for part in info.layers)
        raise UserError(
            f"teacher.lora={info.path}: a LoRA for the {names} alone: none of its {info.tensors} tensors is for the "
            "U-Net, which a style has to change; use a LoRA that was trained on the U-Net too"
        )


def refuse_other_base(info: LoraInfo, unet_config: Mapping[str, Any], *, key: str = "teacher.base") -> None:
    """Check the file against the configuration of the base's network.

    A flow's transformer refuses LoRAs for U-Nets; whether another is for this transformer, its layers tell.

    Args:
        key: config key of that base, for the message.

    Raises:
        UserError: in one sentence, if the file was made for another kind of model.
    """
    width = unet_config.get("cross_attention_dim")
    xl = unet_config.get("addition_embed_type") == "text_time"
    base = SDXL if xl else _BY_CONTEXT.get(width) if isinstance(width, int) and width != 2048 else None
    flow = FLOWS.get(unet_config.get("_class_name", ""))
    if flow and info.family not in (SD1, SD2, SDXL):
        return
    base = flow or base
    if info.family is not None and info.family != base and (base or info.family not in (SD1, SD2)):
        raise UserError(
            f"teacher.lora={info.path}: this is a LoRA for {info.family}, but {key} is "
            f"{base or 'another kind of model'}; use a LoRA made for this base model, or the base model it was made for"
        )
    if isinstance(width, int) and info.context_width not in (None, width):
        raise UserError(
            f"teacher.lora={info.path}: made for another architecture: its prompts are {info.context_width} wide "
            f"{'' if info.family is None else f'({info.family}) '}and those of the base model {width}; use a LoRA made "
            "for this base model"
        )


def _family(header: LoraHeader, context: int | None) -> str | None:
    """Names and shapes before notes: those cannot be wrong."""
    for part, family in _FOREIGN:
        if any(part in key for key in header.shapes):
            return family
    names = [layer.name for layer in header.layers if layer.part == UNET]
    if any(key.startswith("transformer.") for key in header.shapes) or any(map(_TRANSFORMER.match, names)):
        return "a transformer (flow) model"
    if any(layer.part == TEXT[1] for layer in header.layers):
        return SDXL
    if any(re.search(r"(add_embedding|label_emb)[._]", key) for key in header.shapes):
        return SDXL
    if context is not None and context in _BY_CONTEXT:
        return _BY_CONTEXT[context]
    if context is None and any(re.search(r"transformer_blocks[._][1-9]", key) for key in header.shapes):
        return SDXL  # the others have one transformer block at each place
    version = header.metadata.get("ss_base_model_version", "").lower()
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    named = [family for start, family in _KOHYA_VERSIONS if version.startswith(start)]
    named += [family for start, family in _ARCHITECTURES if architecture.startswith(start)]
    return named[0] if named else None


def _weight_elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The size of the weight that tensors of these shapes change."""
    if "up" in shapes:
        rest = shapes["mid"][2:] + shapes["down"][1:2] if "mid" in shapes else shapes["down"][1:]
        return shapes["up"][0] * math.prod(rest)
    if "hada_w1_a" in shapes:
        return _product(shapes, "hada_w1_a", "hada_w1_b", "hada_t1")
    sizes = (
        math.prod(shapes[f"lokr_{w}"])
        if f"lokr_{w}" in shapes
        else _product(shapes, f"lokr_{w}_a", f"lokr_{w}_b", f"lokr_{w.replace('w', 't')}")
        for w in ("w1", "w2")
    )
    return math.prod(sizes)


def _product(shapes: Mapping[str, tuple[int, ...]], a: str, b: str, core: str) -> int:
    if core in shapes:  # Tucker: a is (r, out)
        return shapes[a][1] * shapes[b][1] * math.prod(shapes[core][2:])
    return shapes[a][0] * shapes[b][1]


def _context_width(header: LoraHeader) -> int | None:
    """Input width of the keys and values of cross-attention."""
    for layer in header.layers:
        if layer.part == UNET and re.search(r"attn2[._]to[._][kv]$", layer.name):
            shapes = {role: header.shapes[key] for role, key in layer.keys.items()}
            for role in ("down", "hada_w1_b"):
                if role in shapes:
                    return shapes[role][1]
            left, right = (shapes.get(f"lokr_{w}", shapes.get(f"lokr_{w}_b")) for w in ("w1", "w2"))
            if left is not None and right is not None:
                return left[1] * right[1]
    return None
