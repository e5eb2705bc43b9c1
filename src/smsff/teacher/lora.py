"""Style LoRA files: reading, checking, loading; and switching between the adapters of one model.

Diffusers loads a LoRA that was made for another model with no more than a log line, and it then has no effect. Here
every tensor of the file is accounted for before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from smsff.errors import UserError

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

# Part of a tensor name, and what it says about the file.
_UNSUPPORTED = (
    ("hada_", "a LoHa (LyCORIS) file"),
    ("lokr_", "a LoKr (LyCORIS) file"),
    ("dora_scale", "a DoRA file"),
    ("lora_magnitude_vector", "a DoRA file"),
    ("lora_mid.", "a LoCon file with Tucker decomposition"),
    ("lora_te2_", "a LoRA for SDXL"),
    ("text_encoder_2.", "a LoRA for SDXL"),
    ("lora_transformer_", "a LoRA for a transformer (flow) model"),
    ("transformer.", "a LoRA for a transformer (flow) model"),
    ("double_blocks", "a LoRA for a transformer (flow) model"),
)
_CONFIG_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora")


@dataclass(frozen=True)
class LoraReport:
    """What became of the tensors of a LoRA file (alphas are not counted).

    Attributes:
        path: the file.
        total: number of tensors in it.
        matched: how many of them were loaded, into U-Net and text encoder together.
        unmatched: layers the file has weights for and the model lacks.
        ignored: number of text-encoder tensors that were left out because there was no text encoder to load them into.
        ranks: the ranks that occur, ascending.
        strength: factor on the LoRA's own scale alpha / rank.
        adapts_text: whether the text encoder has the adapter too.
    """

    path: Path
    total: int
    matched: int
    unmatched: tuple[str, ...]
    ignored: int
    ranks: tuple[int, ...]
    strength: float
    adapts_text: bool


@dataclass(frozen=True)
class _LoraFile:
    """Contents of a file by model part, in peft's names: ``<layer>.lora_A.weight``, ``<layer>.lora_B.weight``."""

    path: Path
    unet: Tensors
    text: Tensors
    alphas: dict[str, float]  # by flattened layer name, see _flat
    config: dict[str, Any] | None  # the U-Net's peft configuration, where the file has one


class AdapterSwitch:
    """Chooses which adapter the layers of one model apply: one by name, or none.

    peft's own `set_adapter` and `disable_adapters` walk the model and flip ``requires_grad`` on the way. This touches
    only the two attributes the layers read, on a cached list. Adapters start switched off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.refresh()

    def refresh(self) -> None:
        """Find the layers again after an adapter was added, and switch everything off."""
        self._layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        self._set(None)

    def _set(self, adapter: str | None) -> None:
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        self.active = adapter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Within the context the model applies `adapter` alone; the state before is restored on exit."""
        before = self.active
        if adapter == before:
            yield
            return
        self._set(adapter)
        try:
            yield
        finally:
            self._set(before)


def load_style_lora(
    unet: nn.Module,
    text_encoder: nn.Module | None,
    path: str | Path,
    *,
    adapter_name: str = "style",
    strength: float = 1.0,
) -> LoraReport:
    """Load a LoRA file (kohya, with LoCon convolutions; diffusers; peft) as a frozen adapter, in the models' dtype.

    The adapted weight is W + strength * alpha / rank * up @ down. The adapter is left active; wrap the models in an
    `AdapterSwitch` afterwards.

    Args:
        path: the file, or a folder with one such file.

    Raises:
        UserError: if the file is missing, of a format or for an architecture that is not supported, or if no tensor
            fits the U-Net. A LoRA that fits in part is loaded and the rest listed in a warning.
    """
    file = _read(find_lora_file(path))
    unet_state, unmatched = _matching(unet, file.unet, file.path)
    if not unet_state:
        raise UserError(
            f"teacher.lora={file.path}: none of its {len(file.unet) + len(file.text)} tensors fits the U-Net of the "
            "base model, so it was made for another architecture; use a LoRA made for this base model"
        )
    text_state: Tensors = {}
    if text_encoder is not None:
        text_state, missing = _matching(text_encoder, file.text, file.path)
        unmatched += missing
    if unmatched:
        names = ", ".join(unmatched)
        logger.warning("teacher.lora=%s: %d of its layers are not in the model: %s", file.path, len(unmatched), names)

    config = None if file.config is None else {f"unet.{key}": value for key, value in file.config.items()}
    Loader.load_lora_into_unet(_prefixed(unet_state, "unet"), None, unet, adapter_name=adapter_name, metadata=config)
    _finish(unet, adapter_name, strength, None if file.config is not None else file.alphas)
    if text_encoder is not None and text_state:
        state = _prefixed(text_state, "text_encoder")
        with no_weight_bars():
            Loader.load_lora_into_text_encoder(state, None, text_encoder, adapter_name=adapter_name)
        _finish(text_encoder, adapter_name, strength, file.alphas)
    downs = [value for key, value in (unet_state | text_state).items() if key.endswith("lora_A.weight")]
    return LoraReport(
        path=file.path,
        total=len(file.unet) + len(file.text),
        matched=len(unet_state) + len(text_state),
        unmatched=tuple(unmatched),
        ignored=len(file.text) if text_encoder is None else 0,
        ranks=tuple(sorted({len(down) for down in downs})),
        strength=strength,
        adapts_text=bool(text_state),
    )


@contextmanager
def no_weight_bars() -> Iterator[None]:
    """Silence transformers' progress bar over weights already on disk; those of downloads are others and stay."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def find_lora_file(path: str | Path) -> Path:
    """The LoRA file at `path`, or the only one in the folder `path`; UserError that says what to put where if none."""
    found = Path(path).expanduser()
    if found.is_dir():
        files = sorted(found.glob("*.safetensors"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise UserError(f"teacher.lora={path}: a folder must hold exactly one .safetensors file; found {names}")
        return files[0]
    if not found.is_file():
        raise UserError(
            f"teacher.lora={path}: no such file. Download the LoRA of the style (kohya, diffusers or peft format, made "
            "for the base model), put it there or set teacher.lora to where it is"
        )
    return found


def _read(path: Path) -> _LoraFile:
    raw, config = _read_tensors(path)
    _refuse_unsupported(raw, path)
    alphas = {_flat(key.removesuffix(".alpha")): float(value) for key, value in raw.items() if key.endswith(".alpha")}
    try:
        # Takes the dictionary apart, so it gets a copy; alphas are read above, by layer.
        state, _ = Loader.lora_state_dict(dict(raw))
    except (ValueError, KeyError) as error:
        raise UserError(f"teacher.lora={path}: not a LoRA format that can be read ({error})") from None
    state = {key.removeprefix("base_model.model."): v for key, v in state.items() if not key.endswith(".alpha")}
    text = {key.removeprefix("text_encoder."): v for key, v in state.items() if key.startswith("text_encoder.")}
    unet = {key.removeprefix("unet."): v for key, v in state.items() if not key.startswith("text_encoder.")}
    text = {_text_key_to_peft(key): value for key, value in text.items()}
    return _LoraFile(path, convert_unet_state_dict_to_peft(unet), text, alphas, config)


def _text_key_to_peft(key: str) -> str:
    """``self_attn.to_q_lora.down`` and ``fc1.lora_linear_layer.up`` become ``q_proj.lora_A`` and ``fc1.lora_B``."""
    key = re.sub(r"\.to_(q|k|v|out)_lora\.", r".\1_proj.lora.", key)
    key = re.sub(r"\.(lora|lora_linear_layer)\.down\.", ".lora_A.", key)
    return re.sub(r"\.(lora|lora_linear_layer)\.up\.", ".lora_B.", key)


def _read_tensors(path: Path) -> tuple[Tensors, dict[str, Any] | None]:
    """Tensors and the peft configuration of the U-Net: from the file's header, or from peft's file beside it."""
    if path.suffix != ".safetensors":
        raise UserError(f"teacher.lora={path}: only .safetensors files are read; convert the file first")
    try:
        with safe_open(path, "pt") as file:
            raw = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
            header = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"teacher.lora={path}: the file cannot be read ({error})") from None
    config = {key.removeprefix("unet."): value for key, value in header.items() if not key.startswith("text_encoder.")}
    beside = path.parent / "adapter_config.json"
    if not config and beside.is_file() and any(key.startswith("base_model.model.") for key in raw):
        config = json.loads(beside.read_text())
    config = {key: value for key, value in config.items() if key in _CONFIG_FIELDS}
    return raw, config or None


def _refuse_unsupported(raw: Tensors, path: Path) -> None:
    for part, kind in _UNSUPPORTED:
        if any(part in key if part != "transformer." else key.startswith(part) for key in raw):
            raise UserError(
                f"teacher.lora={path}: this is {kind}, which is not supported; use a plain LoRA or LoCon for a "
                "Stable Diffusion 1.x model (LyCORIS files can be converted with the tools of LyCORIS)"
            )
    strange = [key for key in raw if "lora" not in key and not key.endswith(".alpha")]
    if strange or not raw:
        what = f"it has tensors such as {strange[0]}" if strange else "it is empty"
        raise UserError(f"teacher.lora={path}: not a LoRA file ({what})")


def _flat(name: str) -> str:
    """A layer's name without the differences between formats: no prefix, underscores for dots."""
    prefix = r"^(base_model_model_)?(lora_)?(unet_|te1?_|text_encoder_)?(text_model_)?"
    return re.sub(prefix, "", name.replace(".", "_"))


def _matching(model: nn.Module, state: Tensors, path: Path) -> tuple[Tensors, list[str]]:
    """The tensors whose layer the model has, and the names of the layers that it has not.

    Raises:
        UserError: where a layer exists but with other sizes, which is the sign of another architecture.
    """
    layers = dict(model.named_modules())
    kept: Tensors = {}
    unmatched: dict[str, None] = {}
    for key, value in state.items():
        name = key.partition(".lora_")[0]
        # Transformers 5 dropped one level of names that the files still have.
        name = name if name in layers else name.removeprefix("text_model.")
        weight = getattr(layers.get(name), "weight", None)
        if weight is None:
            unmatched[name] = None
            continue
        fits = value.shape[0] == weight.shape[0] if ".lora_B." in key else value.shape[1:] == weight.shape[1:]
        if not fits or value.ndim != weight.ndim:
            raise UserError(
                f"teacher.lora={path}: made for another architecture: its {name} is {tuple(value.shape)}, which does "
                f"not fit the weight {tuple(weight.shape)} of the base model; use a LoRA made for this base model"
            )
        kept[name + key[key.index(".lora_") :]] = value
    return kept, list(unmatched)


def _prefixed(state: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _finish(model: nn.Module, adapter: str, strength: float, alphas: dict[str, float] | None) -> None:
    """Set the scale of every layer, freeze the adapter and give it the dtype of the model.

    With `alphas` the scale is alpha / rank of that very layer, 1 for a layer without alpha. (Diffusers guesses one
    configuration for the file, and mixes up alphas that differ in the text encoder.) None keeps peft's, which then
    comes from the configuration saved with the LoRA.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.scaling:
            continue
        rank = layer.r[adapter]
        scale = layer.scaling[adapter] if alphas is None else alphas.get(_flat(name), float(rank)) / rank
        layer.scaling[adapter] = strength * scale
        for part in (layer.lora_A[adapter], layer.lora_B[adapter]):
            part.requires_grad_(False).to(layer.get_base_layer().weight.dtype)
    if not all(torch.isfinite(p).all() for n, p in model.named_parameters() if f".{adapter}." in n):
        raise UserError(f"teacher.lora: the LoRA has values that are not finite in {next(model.parameters()).dtype}")
