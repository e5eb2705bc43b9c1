"""What a pipeline is made of, by its configuration files alone: read and checked before anything large is touched."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig

from smsff.errors import UserError
from smsff.teacher.base.source import Source, absent, read_json

Family = Literal["sd1", "sd2", "sdxl"]
Config = Mapping[str, Any]

FAMILY_NAMES: dict[Family, str] = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
SUPPORTED = "supported are Stable Diffusion 1.x and 2.x and SDXL"

# Settings of a U-Net whose forward pass would need more inputs than a latent, a timestep and a prompt.
_FOREIGN = {
    "class_embed_type": "class conditioning",
    "num_class_embeds": "class conditioning",
    "encoder_hid_dim_type": "image-prompt conditioning",
    "time_cond_proj_dim": "guidance conditioning (a latent consistency model)",
}
_TIME_IDS = 6  # SDXL: height and width of the original, top and left of the crop, height and width of the target


@dataclass(frozen=True)
class PipelineConfig:
    """The configurations of a pipeline's parts, as their files have them.

    Attributes:
        text_encoders: one, or two for SDXL.
        empty_is_zero: the empty prompt is embedded as zeros (SDXL was trained so), not by the text encoders.
        says_prediction: whether the checkpoint itself says what it predicts, noise or v; if not, `scheduler` has what
            is usual.
    """

    unet: Config
    vae: Config
    scheduler: Config
    text_encoders: tuple[Config, ...]
    empty_is_zero: bool = False
    says_prediction: bool = field(default=True, compare=False)

    @property
    def family(self) -> Family:
        if self.unet.get("addition_embed_type") == "text_time":
            return "sdxl"
        return "sd2" if self.unet.get("use_linear_projection") else "sd1"

    @property
    def downscale(self) -> int:
        """Pixels for each latent along a side."""
        return 2 ** (len(vae_widths(self.vae)) - 1)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures that the U-Net was trained on."""
        side = self.unet.get("sample_size") or 64
        return int(side if isinstance(side, int) else max(side)) * self.downscale

    @property
    def parts(self) -> tuple[str, ...]:
        """Sub-folders of the pipeline in the layout of diffusers."""
        text = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")[: 2 * len(self.text_encoders)]
        return "unet", "vae", *text, "scheduler"


def vae_widths(vae: Config) -> list[int]:
    """Channels of each level of the auto-encoder, highest resolution first."""
    return list(
        vae["encoder_block_out_channels" if vae.get("_class_name") == "AutoencoderTiny" else "block_out_channels"]
    )


def read_config(source: Source, *, vae: bool = True) -> PipelineConfig:
    """The configuration of a folder or a hub repository, whose parts are still to be checked; nothing large is read.

    Args:
        vae: whether its auto-encoder is needed; if not, there may be none, and its configuration is empty then.

    Raises:
        UserError: if something is missing or cannot be reached, or if it is a kind of model that is not supported.
    """
    index: Config = {}
    if source.folder is None or (source.folder / "model_index.json").is_file():
        index = read_json(source, "", "model_index.json")
    refuse_pipeline(str(index.get("_class_name", "")), index, source)
    second = "text_encoder_2" in index or bool(source.folder and (source.folder / "text_encoder_2").is_dir())
    text = ("text_encoder", "text_encoder_2") if second else ("text_encoder",)
    tokenizers = tuple(part.replace("text_encoder", "tokenizer") for part in text)
    has_vae = vae or ((source.folder / "vae").is_dir() if source.folder else index.get("vae") not in (None, [None] * 2))
    if source.folder is not None:
        parts = ("unet", *(("vae",) if vae else ()), *text, *tokenizers, "scheduler")
        missing = [part for part in parts if not (source.folder / part).is_dir()]
        if missing:
            raise UserError(absent(source, f"not a complete pipeline, the folder lacks {', '.join(missing)}"))
    scheduler = read_json(source, "scheduler", "scheduler_config.json")
    return PipelineConfig(
        unet=complete_unet(read_json(source, "unet", "config.json")),
        vae=complete_vae(read_json(source, "vae", "config.json")) if has_vae else {},
        scheduler=scheduler,
        text_encoders=tuple(complete_text(read_json(source, part, "config.json"), source) for part in text),
        empty_is_zero=second and bool(index.get("force_zeros_for_empty_prompt", True)),
        says_prediction="prediction_type" in scheduler,
    )


def complete_unet(config: Config) -> Config:
    """With the defaults of what the file, which may be old, leaves out."""
    return _defaults(UNet2DConditionModel) | dict(config)


def complete_vae(config: Config) -> Config:
    """As `complete_unet`."""
    kind = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    return _defaults(kind) | dict(config)


def complete_text(config: Config, source: Source) -> Config:
    """As `complete_unet`, for a CLIP text encoder; UserError for any other."""
    name = (config.get("architectures") or ["CLIPTextModel"])[0]
    if name not in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        raise UserError(f"{source}: its text encoder is a {name}, not a CLIP one; {SUPPORTED}")
    return CLIPTextConfig.from_dict(dict(config)).to_dict()


def _defaults(kind: type) -> dict[str, Any]:
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def refuse_pipeline(name: str, index: Config, source: Source) -> None:
    """Refuse a pipeline by its class and its list of parts.

    Raises:
        UserError: for one without a U-Net, one that is made for inpainting, and SDXL's refiner.
    """
    if "transformer" in index or (index and "unet" not in index):
        raise UserError(
            f"{source}: {name} is a transformer (flow-matching) model, not a U-Net, for which there are teacher=klein, "
            f"zimage, flux1, sd35 and qwen; here {SUPPORTED}"
        )
    if "Inpaint" in name:
        raise UserError(f"{source}: {name} is a model for inpainting; {SUPPORTED}")
    if index.get("text_encoder") == [None, None]:
        raise UserError(f"{source}: {name} without its first text encoder is SDXL's refiner; the base model is needed")


def check_config(config: PipelineConfig, source: Source) -> None:
    """Check that every part is of a supported kind and that they fit one another.

    Raises:
        UserError: says which part is what.
    """
    _check_unet(config.unet, source)
    check_vae(config.vae, source)
    _check_scheduler(config.scheduler, source)
    unet, channels = config.unet, config.vae["latent_channels"]
    if unet["in_channels"] != channels:
        raise UserError(
            f"{source}: the U-Net works on {unet['in_channels']} channels and the auto-encoder gives {channels}; "
            "they do not belong together"
        )
    width = sum(text["hidden_size"] for text in config.text_encoders)
    if unet["cross_attention_dim"] != width:
        raise UserError(
            f"{source}: the U-Net expects prompts of width {unet['cross_attention_dim']} and the text encoder gives "
            f"{width}; they do not belong together"
        )
    if config.family == "sdxl":
        _check_added_conditions(config, source)
    elif len(config.text_encoders) != 1:
        raise UserError(f"{source}: two text encoders, but a U-Net that is not SDXL's; they do not belong together")


def _check_unet(unet: Config, source: Source) -> None:
    name = unet.get("_class_name", "UNet2DConditionModel")
    if name != "UNet2DConditionModel":
        raise UserError(f"{source}: unet is a {name}, not a UNet2DConditionModel; {SUPPORTED}")
    for setting, meaning in _FOREIGN.items():
        if unet.get(setting) is not None:
            raise UserError(f"{source}: its U-Net has {meaning} ({setting}); {SUPPORTED}")
    if unet.get("addition_embed_type") not in (None, "text_time"):
        raise UserError(
            f"{source}: its U-Net has additional embeddings (addition_embed_type={unet['addition_embed_type']}); "
            f"{SUPPORTED}"
        )
    if unet["in_channels"] != unet["out_channels"]:
        raise UserError(
            f"{source}: the U-Net takes {unet['in_channels']} channels and gives {unet['out_channels']}; models "
            "for inpainting or with image conditioning are not supported"
        )


def check_vae(vae: Config, source: Source) -> None:
    """UserError for an auto-encoder of another kind."""
    name = vae.get("_class_name", "AutoencoderKL")
    if name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(f"{source}: vae is a {name}; supported are AutoencoderKL, AutoencoderTiny")


def _check_scheduler(scheduler: Config, source: Source) -> None:
    name = scheduler.get("_class_name", "")
    if "Flow" in name:
        raise UserError(f"{source}: a flow-matching model ({name}); {SUPPORTED}")
    if "beta_schedule" not in scheduler and scheduler.get("trained_betas") is None:
        raise UserError(f"{source}: its scheduler ({name}) has no betas, so its noise levels are others; {SUPPORTED}")


def _check_added_conditions(config: PipelineConfig, source: Source) -> None:
    if len(config.text_encoders) != 2:
        raise UserError(f"{source}: an SDXL model with one text encoder (a refiner?); the base model is needed")
    ids = config.unet["addition_time_embed_dim"] * _TIME_IDS
    pooled = config.text_encoders[1]["projection_dim"]
    expected = config.unet["projection_class_embeddings_input_dim"]
    if expected != ids + pooled:
        raise UserError(
            f"{source}: the U-Net takes {expected} numbers beside the prompt where SDXL's six sizes and the pooled "
            f"prompt are {ids + pooled}; SDXL's base model is needed, not the refiner"
        )
