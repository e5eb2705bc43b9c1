"""What the tensors in a LoRA file are: their names in the formats that are in use, sorted by layer of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher.lora.config import SavedConfig, read_config

UNET = "unet"
"""The network of the scores, a flow's transformer too."""
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")

# Endings of tensor names and what the tensor is. peft may put the adapter's name, any text, before ``weight``.
_ENDINGS = (
    (r"[._]lora(?:_linear_layer)?[._]down(?:\.weight)?", "down"),
    (r"[._]lora(?:_linear_layer)?[._]up(?:\.weight)?", "up"),
    (r"\.lora_A(?:\..+)?\.weight", "down"),
    (r"\.lora_B(?:\..+)?\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_magnitude_vector(?:\..+)?", "magnitude"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.alpha", "alpha"),
    *((rf"\.hada_{tensor}(?:\..+)?", f"hada_{tensor}") for tensor in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(
        (rf"\.lokr_{tensor}(?:\..+)?", f"lokr_{tensor}")
        for tensor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    ),
)
_ROLES = tuple((re.compile(f"(.+?){ending}"), role) for ending, role in _ENDINGS)
_PREFIXES = (
    ("lora_unet_", UNET),
    ("lora_te1_", TEXT[0]),
    ("lora_te2_", TEXT[1]),
    ("lora_te3_", TEXT[2]),
    ("lora_te_", TEXT[0]),
    ("lycoris_", UNET),
    ("text_encoder_3.", TEXT[2]),
    ("text_encoder_2.", TEXT[1]),
    ("text_encoder.", TEXT[0]),
    ("lora_transformer_", UNET),
    ("transformer.", UNET),
    ("unet.", UNET),
    ("model.diffusion_model.", UNET),
    ("diffusion_model.", UNET),
)
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")


@dataclass(frozen=True)
class LayerKeys:
    """The tensors of one layer.

    Attributes:
        part: ``unet``, ``text_encoder`` or ``text_encoder_2``.
        name: the layer, in the file's own notation (dots or underscores) without prefixes.
        keys: {what it is (down, up, mid, alpha, dora_scale, magnitude, hada_…, lokr_…): name of the tensor}.
    """

    part: str
    name: str
    keys: dict[str, str]

    @property
    def algorithm(self) -> str | None:
        """``LoRA``, ``LoHa``, ``LoKr``, with ``Tucker`` and ``DoRA`` where they apply; None if tensors are missing."""
        has = self.keys.keys()
        if {"down", "up"} <= has:
            kind = "LoRA Tucker" if "mid" in has else "LoRA"
        elif {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= has and ("hada_t1" in has) == ("hada_t2" in has):
            kind = "LoHa Tucker" if "hada_t1" in has else "LoHa"
        elif all({f"lokr_{w}"} <= has or {f"lokr_{w}_a", f"lokr_{w}_b"} <= has for w in ("w1", "w2")):
            kind = "LoKr Tucker" if "lokr_t2" in has else "LoKr"
        else:
            return None
        return f"{kind} DoRA" if has & {"dora_scale", "magnitude"} else kind


@dataclass(frozen=True)
class LoraHeader:
    """A LoRA file without its weights.

    Attributes:
        shapes: of all tensors, by name.
        layers: the layers that the file adapts, those with missing tensors too.
        unknown: names of tensors that are no part of a LoRA.
        config: rank and alpha of each part as header or peft's file say them, for layers without an alpha of their own.
        unusable: names of what is said there but cannot be applied.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    layers: tuple[LayerKeys, ...]
    unknown: tuple[str, ...]
    config: dict[str, SavedConfig]
    unusable: tuple[str, ...]

    @property
    def format(self) -> str:
        """Whose names the file uses: ``kohya``, ``lycoris``, ``peft`` or ``diffusers``."""
        for part, name in (("lora_unet_", "kohya"), ("lora_te", "kohya"), ("lycoris_", "lycoris")):
            if any(key.startswith(part) for key in self.shapes):
                return name
        return "peft" if any(key.startswith("base_model.model.") for key in self.shapes) else "diffusers"


def find_lora_file(path: str | Path) -> Path:
    """The LoRA file at `path`, or the only one in the folder `path`; UserError that says what to put where if none."""
    found = Path(path).expanduser()
    if found.is_dir():
        files = sorted(file for file in found.iterdir() if file.suffix.lower() == ".safetensors")
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


def read_header(path: str | Path) -> LoraHeader:
    """Names, shapes and metadata; no weight is read.

    Raises:
        UserError: if the file is missing, broken, no ``.safetensors``, or has nothing that looks like a LoRA.
    """
    found = find_lora_file(path)
    if found.suffix.lower() != ".safetensors":
        raise UserError(
            f"teacher.lora={found}: only .safetensors files are read, for others can run code when they are opened; "
            "convert the file first"
        )
    try:
        with safe_open(found, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, no dictionary
            shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
            dtypes = {key: one.get_dtype() for key, one in slices.items()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"teacher.lora={found}: the file cannot be read ({error})") from None
    try:
        layers, unknown = sort_keys(shapes)
    except ValueError as error:
        raise UserError(f"teacher.lora={found}: {error}") from None
    if not layers:
        what = f"no tensors of a LoRA, LoHa or LoKr, but such as {unknown[0]}" if unknown else "it is empty"
        raise UserError(f"teacher.lora={found}: not a LoRA file ({what})")
    for role, key in (item for layer in layers for item in layer.keys.items()):
        if not _has_sense(role, shapes[key], dtypes[key]):
            raise UserError(f"teacher.lora={found}: no LoRA has {key} of shape {shapes[key]} and type {dtypes[key]}")
    parts = dict.fromkeys(layer.part for layer in layers)
    wanted = dict.fromkeys(layer.part for layer in layers if "alpha" not in layer.keys)
    peft = any(key.startswith("base_model.model.") for key in shapes)
    # Where the layers are called transformer.…, so are their entries in the header.
    said = {UNET: "transformer"} if any(key.startswith("transformer.") for key in shapes) else {}
    named = [[said.get(part, part) for part in some] for some in (parts, wanted)]
    config, unusable = read_config(found, metadata, *named, peft=peft)
    config = {part: config[name] for part in wanted if (name := said.get(part, part)) in config}
    return LoraHeader(found, shapes, metadata, layers, unknown, config, unusable)


def read_tensors(header: LoraHeader) -> dict[str, Tensor]:
    """The weights, by name."""
    try:
        with safe_open(header.path, "pt") as file:
            return {key: file.get_tensor(key) for key in header.shapes}
    except (SafetensorError, OSError) as error:
        raise UserError(f"teacher.lora={header.path}: the file cannot be read ({error})") from None


def sort_keys(keys: Iterable[str]) -> tuple[tuple[LayerKeys, ...], tuple[str, ...]]:
    """The layers that the tensors called `keys` belong to, and the names that are no part of a LoRA.

    Raises:
        ValueError: two names are for the same tensor of the same layer, as in a file with two adapters.
    """
    layers: dict[tuple[str, str], dict[str, str]] = {}
    unknown = []
    for key in keys:
        found = next(((m[1], role) for pattern, role in _ROLES if (m := pattern.fullmatch(key))), None)
        if found is None:
            unknown.append(key)
        else:
            roles = layers.setdefault(_part_and_layer(found[0]), {})
            if roles.setdefault(found[1], key) != key:
                raise ValueError(f"{roles[found[1]]} and {key} are for the same layer; a file may hold one LoRA")
    return tuple(LayerKeys(part, name, roles) for (part, name), roles in layers.items()), tuple(unknown)


def _has_sense(role: str, shape: tuple[int, ...], dtype: str) -> bool:
    if role == "alpha":
        return math.prod(shape) == 1 and dtype in (*_FLOATS, *_INTEGERS)
    return dtype in _FLOATS and len(shape) >= (1 if role in ("dora_scale", "magnitude") else 2) and 0 not in shape


def _part_and_layer(name: str) -> tuple[str, str]:
    name = name.removeprefix("base_model.model.")
    part = None
    for prefix, of in _PREFIXES:
        if name.startswith(prefix):
            part, name = of, name.removeprefix(prefix)
            break
    name = name.removeprefix("base_model.model.")
    if part is None:
        part = TEXT[0] if name.startswith(("text_model.", "encoder.layers.")) else UNET
    name = name.replace(".processor.", ".")  # diffusers once kept LoRAs in the attention processors
    if part == UNET:
        return part, re.sub(r"\.to_out$", ".to_out.0", name)
    return part, re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", name)
