"""The families of flow-matching models, by the class name in ``model_index.json``: what each is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5EncoderModel,
)

from smsff.errors import UserError
from smsff.teacher.base.source import Source, absent, read_json
from smsff.teacher.condition import Condition
from smsff.teacher.flow import calls, prompts

DISTILLED = ("turbo", "schnell", "lightning", "hyper", "distilled")
"""Parts of names of models that make pictures in a few steps."""


@dataclass(frozen=True)
class FlowFamily:
    """
    Attributes:
        name: of ``conf/teacher/NAME.yaml``.
        title: for people.
        transformer, vae, texts: the classes of the parts; `texts` of text_encoder, text_encoder_2, text_encoder_3.
        call: a function of `calls`.
        embed: a function of `prompts`.
        tokens: of an embedded prompt; where its own length counts, of one of usual length.
        patch: sides of the latents are multiples of this.
    """

    name: str
    title: str
    transformer: Any
    vae: Any
    texts: tuple[Any, ...]
    call: Callable[..., Tensor]
    embed: Callable[..., Condition]
    tokens: int
    patch: int = 2


_CLIP, _T5 = CLIPTextModelWithProjection, T5EncoderModel
FAMILIES: dict[str, FlowFamily] = {
    "StableDiffusion3Pipeline": FlowFamily(
        "sd35", "Stable Diffusion 3.5", SD3Transformer2DModel, AutoencoderKL, (_CLIP, _CLIP, _T5), calls.sd35,
        prompts.sd35, 333,
    ),
    "FluxPipeline": FlowFamily(
        "flux1", "FLUX.1", FluxTransformer2DModel, AutoencoderKL, (CLIPTextModel, _T5), calls.flux1, prompts.flux1, 512
    ),
    "Flux2KleinPipeline": FlowFamily(
        "klein", "FLUX.2 klein", Flux2Transformer2DModel, AutoencoderKLFlux2, (Qwen3ForCausalLM,), calls.klein,
        prompts.klein, 512,
    ),
    "ZImagePipeline": FlowFamily(
        "zimage", "Z-Image", ZImageTransformer2DModel, AutoencoderKL, (Qwen3Model,), calls.zimage, prompts.zimage, 64
    ),
    "QwenImagePipeline": FlowFamily(
        "qwen", "Qwen-Image", QwenImageTransformer2DModel, AutoencoderKLQwenImage,
        (Qwen2_5_VLForConditionalGeneration,), calls.qwen, prompts.qwen, 64,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FlowConfig:
    """The configurations of a pipeline's parts, as their files have them.

    Attributes:
        texts: of the text encoders, in order.
        distilled: whether the pipeline itself says that it is distilled to few steps.
    """

    family: FlowFamily
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    distilled: bool = False


def text_parts(family: FlowFamily) -> list[str]:
    """Sub-folders of the text encoders; those of the tokenizers have ``tokenizer`` for ``text_encoder``."""
    return ["text_encoder", "text_encoder_2", "text_encoder_3"][: len(family.texts)]


def read_flow_config(source: Source, *, base: Source | None = None) -> FlowConfig:
    """The configuration of a folder or a hub repository; nothing large is read.

    Args:
        base: what the transformer is read from, if not from here; its name then says whether it is distilled.

    Raises:
        UserError: something is missing or cannot be reached, or it is no model of `FAMILIES`; it is named.
    """
    index = read_json(source, "", "model_index.json")
    name = str(index.get("_class_name", ""))
    if name not in FAMILIES:
        kind = "is made for a U-Net teacher (teacher=sd15, sd2, sdxl)" if "unet" in index else "is not supported"
        raise UserError(f"{source}: {name or 'a pipeline without a name'} {kind}; flow teachers are {supported()}")
    family = FAMILIES[name]
    texts = text_parts(family)
    parts = ["transformer", "vae", *texts, *(part.replace("text_encoder", "tokenizer") for part in texts)]
    if source.folder is not None and (missing := [part for part in parts if not (source.folder / part).is_dir()]):
        raise UserError(absent(source, f"not a complete pipeline, the folder lacks {', '.join(missing)}"))
    transformer, vae = (read_json(source, part, "config.json") for part in ("transformer", "vae"))
    for part, found, kind in (("transformer", transformer, family.transformer), ("vae", vae, family.vae)):
        if found.get("_class_name") != kind.__name__:
            raise UserError(f"{source}: its {part} is a {found.get('_class_name')}, not the {kind.__name__} of {name}")
    return FlowConfig(
        family,
        transformer,
        vae,
        tuple(read_json(source, part, "config.json") for part in texts),
        distilled=bool(index.get("is_distilled"))
        or any(word in Path((base or source).name).name.lower() for word in DISTILLED),
    )


def supported() -> str:
    """The families, in words."""
    return ", ".join(f"{family.title} (teacher={family.name})" for family in FAMILIES.values())
