"""The parts of a Stable-Diffusion-1.x pipeline, from a folder or the Hugging Face hub, checked as they are loaded.

Every way in which the weights can be absent or of the wrong kind ends in one `UserError` that names the config key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from smsff.errors import UserError
from smsff.teacher.lora import no_weight_bars
from smsff.teacher.schedule import NoiseSchedule

T = TypeVar("T")

_LOAD_ERRORS = (OSError, ValueError, SafetensorError)

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# Settings of a U-Net that only models other than Stable Diffusion 1.x and 2.x have: the forward pass would need more
# inputs than a latent, a timestep and a prompt.
_FOREIGN = {
    "addition_embed_type": "additional embeddings (SDXL and others)",
    "class_embed_type": "class conditioning",
    "num_class_embeds": "class conditioning",
    "encoder_hid_dim_type": "image-prompt conditioning",
    "time_cond_proj_dim": "guidance conditioning (a latent consistency model)",
}


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from.

    Attributes:
        name: a folder or a hub id, as the user wrote it.
        key: the config key that holds it, for messages.
        revision: branch, tag or commit on the hub.
        variant: suffix of the weight files, such as ``fp16``.
        local_files_only: never ask the hub.
    """

    name: str
    key: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, None for a hub id."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def location(self) -> str:
        """What the loaders take: the folder, or the hub id."""
        return self.name if self.folder is None else str(self.folder)

    def __str__(self) -> str:
        return f"{self.key}={self.name}"


def check_source(source: Source) -> None:
    """Check that `source` exists and is of a supported kind, by its ``model_index.json``; nothing large is read.

    Raises:
        UserError: if it is missing, cannot be reached, is incomplete, or is another kind of pipeline.
    """
    folder = source.folder
    if folder is None:
        index = _index_from_hub(source)
    else:
        file = folder / "model_index.json"
        index = _read_json(file, source) if file.is_file() else {}
    _refuse_foreign_pipeline(index, source)
    missing = [] if folder is None else [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(_absent(source, f"not a complete pipeline, the folder lacks {', '.join(missing)}"))


def load_unet(source: Source, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net, after its configuration was checked."""
    config = _try_local_first(
        source, "unet", lambda **where: UNet2DConditionModel.load_config(source.location, **where)
    )
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise UserError(f"{source}: unet is a {config['_class_name']}, not a UNet2DConditionModel")
    for setting, meaning in _FOREIGN.items():
        if config.get(setting) is not None:
            raise UserError(f"{source}: not a Stable Diffusion 1.x U-Net, it has {meaning} ({setting})")
    if config["in_channels"] != config["out_channels"]:
        raise UserError(
            f"{source}: the U-Net takes {config['in_channels']} channels and gives {config['out_channels']}; models "
            "for inpainting or with image conditioning are not supported"
        )
    unet, info = _try_local_first(
        source,
        "unet",
        lambda **where: UNet2DConditionModel.from_pretrained(
            source.location, variant=source.variant, torch_dtype=dtype, output_loading_info=True, **where
        ),
    )
    if info["missing_keys"]:
        raise UserError(f"{source}: the U-Net's file lacks weights, {info['missing_keys'][0]} for one")
    return unet


def load_vae(source: Source) -> AutoencoderKL | AutoencoderTiny:
    """The auto-encoder, in float32: Stable Diffusion's overflows in float16."""
    config = _try_local_first(source, "vae", lambda **where: AutoencoderKL.load_config(source.location, **where))
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    name = config.get("_class_name", "AutoencoderKL")
    if name not in classes:
        raise UserError(f"{source}: vae is a {name}; supported are {', '.join(classes)}")
    return _try_local_first(
        source,
        "vae",
        lambda **where: classes[name].from_pretrained(
            source.location, variant=source.variant, torch_dtype=torch.float32, **where
        ),
    )


@no_weight_bars()
def load_text(source: Source) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Text encoder, in float32, and tokenizer."""
    encoder = _try_local_first(
        source,
        "text_encoder",
        lambda **where: CLIPTextModel.from_pretrained(
            source.location, variant=source.variant, dtype=torch.float32, **where
        ),
    )
    tokenizer = _try_local_first(
        source, "tokenizer", lambda **where: CLIPTokenizer.from_pretrained(source.location, **where)
    )
    return encoder, tokenizer


def load_schedule(source: Source) -> NoiseSchedule:
    """Betas and prediction type as the checkpoint's scheduler has them, whatever sampler that is.

    Read through DDPMScheduler: others define `add_noise` differently (EulerDiscreteScheduler works in sigmas).
    """
    config = _try_local_first(source, "scheduler", lambda **where: DDPMScheduler.load_config(source.location, **where))
    name = config.get("_class_name", "")
    if "Flow" in name:
        raise UserError(f"{source}: a flow-matching model ({name}); Stable Diffusion 1.x is needed")
    scheduler = DDPMScheduler.from_config(config)
    return NoiseSchedule(scheduler.betas, scheduler.config.prediction_type)


def _try_local_first(source: Source, part: str, load: Callable[..., T]) -> T:
    """`load` from the folder or the hub's cache; only what is not there is asked of the hub."""
    where = {"subfolder": part, "revision": source.revision}
    try:
        return load(local_files_only=True, **where)
    except _LOAD_ERRORS as error:
        if source.folder is not None or source.local_files_only:
            raise UserError(_absent(source, f"its {part} cannot be read ({_first_line(error)})")) from None
    _ask_hub(source)
    try:
        return load(local_files_only=False, **where)
    except _LOAD_ERRORS as error:
        raise UserError(_absent(source, f"its {part} cannot be fetched ({_first_line(error)})")) from None


def _index_from_hub(source: Source) -> dict[str, Any]:
    if source.name.count("/") > 1 or source.name.startswith((".", "/", "~")) or "\\" in source.name or not source.name:
        raise UserError(_absent(source, "there is no such folder"))
    if Path(source.name).suffix in (".safetensors", ".ckpt", ".pt", ".bin"):
        raise UserError(
            f"{source}: a single file; convert it to the folder layout of diffusers first "
            "(StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)) and give the folder"
        )

    def download(*, local_files_only: bool, subfolder: str, revision: str | None) -> str:
        return hf_hub_download(source.name, "model_index.json", revision=revision, local_files_only=local_files_only)

    return _read_json(Path(_try_local_first(source, "model_index.json", download)), source)


def _ask_hub(source: Source) -> None:
    """One request without retries, so that a machine without network learns of it at once."""
    try:
        get_hf_file_metadata(hf_hub_url(source.name, "model_index.json", revision=source.revision), timeout=10)
    except Exception as error:  # the hub's client raises errors of its HTTP library, which differ between versions
        reason = f"no such folder, and the Hugging Face hub does not give it either ({_first_line(error)})"
        raise UserError(_absent(source, reason)) from None


def _absent(source: Source, reason: str) -> str:
    known = source.folder is None and source.name.count("/") == 1
    fetch = source.name if known else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return (
        f"{source}: {reason}. Give the folder of a Stable Diffusion 1.x pipeline ({', '.join(PARTS)}) "
        f"or the id of one on the hub; for example run `hf download {fetch} --local-dir models/base` where there is a "
        f"network and set {source.key}=models/base"
    )


def _refuse_foreign_pipeline(index: dict[str, Any], source: Source) -> None:
    name = index.get("_class_name", "StableDiffusionPipeline")
    kind = None
    if "transformer" in index or (index and "unet" not in index):
        kind = "not a U-Net model"
    elif "text_encoder_2" in index or "XL" in name:
        kind = "an SDXL model"
    if kind:
        raise UserError(f"{source}: {name} is {kind}; the teacher has to be a Stable Diffusion 1.x pipeline")


def _read_json(path: Path, source: Source) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{source}: {path.name} cannot be read ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
