"""The folder layout of diffusers: which files loading a pipeline needs, and whether a folder has them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from smsff.weights.files import safetensors_fault

# Part: name of its weights as safetensors, and as a pickle. Safety checkers, feature extractors, formats of other
# frameworks and the single-file copies that many repositories hold besides are not needed.
MODELS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformer": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
    "text_encoder_2": ("model", "pytorch_model"),
    "text_encoder_3": ("model", "pytorch_model"),
}
SETTINGS = ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
ALWAYS = ("vae", "text_encoder", "tokenizer", "scheduler")
SUFFIXES = (".json", ".txt", ".model", ".jinja")
"""Of configurations, vocabularies and templates of chats."""
INDEX = "model_index.json"
PARTS = {
    "vae": ("an auto-encoder", MODELS["vae"], ("", "vae/")),
    "controlnet": ("a ControlNet", MODELS["unet"], ("",)),
    "image_encoder": ("an image encoder", MODELS["text_encoder"], ("", "models/image_encoder/")),
}
"""One network that is taken from a folder or repository: what it is, the names of its weights as in `MODELS`, and the
places where it may lie: alone, or in a sub-folder."""


def needed_files(
    names: Iterable[str],
    *,
    variant: str | None = None,
    weights: Collection[str] = tuple(MODELS),
    part: str | None = None,
) -> list[str]:
    """Those of the files of a repository (paths with ``/``) that loading its pipeline reads, sorted.

    Of the weights those with the suffix `variant`, such as ``fp16``, come first; of the parts not in `weights` the
    settings alone; with `part`, one of `PARTS`, this alone.
    """
    listing = sorted(names)
    if part is not None:
        _, stems, places = PARTS[part]
        place = next((place for place in places if f"{place}config.json" in listing), None)
        if place is None:
            return []
        inside = [name.removeprefix(place) for name in listing if name.startswith(place)]
        return sorted(place + name for name in ("config.json", *weight_files(inside, stems, variant)))
    chosen = [name for name in listing if name == INDEX]
    for folder in (*MODELS, *SETTINGS):
        inside = [name.removeprefix(f"{folder}/") for name in listing if name.startswith(f"{folder}/")]
        plain = [n for n in inside if n.endswith(SUFFIXES) and ".index." not in n and "/" not in n]
        tensors = weight_files(inside, MODELS[folder], variant) if folder in weights else []
        chosen += [f"{folder}/{name}" for name in (*plain, *tensors)]
    return sorted(chosen)


def weight_files(names: Iterable[str], stems: tuple[str, str], variant: str | None) -> list[str]:
    """The weights of one network, with the index of split ones: of the variant if there are any, safetensors first."""
    names, number = list(names), r"-\d+-of-\d+"
    for middle in [rf"\.{re.escape(variant)}", ""] if variant else [""]:
        for stem, kind in zip(stems, ("safetensors", "bin"), strict=True):
            whole_or_split = re.compile(rf"{stem}({middle}|{middle}{number}|{number}{middle})\.{kind}")
            index = re.compile(rf"{stem}\.{kind}\.index{middle}\.json")
            if found := [name for name in names if whole_or_split.fullmatch(name)]:
                return found + [name for name in names if index.fullmatch(name)]
    return []


def folder_fault(
    folder: Path, *, variant: str | None = None, weights: Collection[str] = tuple(MODELS), part: str | None = None
) -> str | None:
    """What a pipeline folder lacks, in a few words; None if all parts are there and whole, by names and headers.

    Arguments as of `needed_files`.
    """
    if part is not None:
        files = needed_files([path.relative_to(folder).as_posix() for path in folder.rglob("*")], part=part)
        if len(files) < 2:
            what = PARTS[part][0]
            return f"it has no {what.partition(' ')[2]}" if not files else f"it has {what} without weights"
        return _weights_fault((folder / files[0]).parent, [Path(name).name for name in files[1:]])
    index = _read(folder / INDEX) or {}
    always = ("transformer" if "transformer" in index else "unet", *ALWAYS)
    listed = [name for name in (*MODELS, *SETTINGS) if name in always or index.get(name) not in (None, [None, None])]
    for name in listed:
        inside = folder / name
        if not inside.is_dir():
            return f"the part {name} is missing"
        names = [path.name for path in inside.iterdir()]
        if name in SETTINGS:
            if not any(one.endswith(".json") for one in names):
                return f"{name} is empty"
            continue
        if "config.json" not in names:
            return f"{name}/config.json is missing"
        tensors = weight_files(names, MODELS[name], variant) if name in weights else []
        if name in weights and not tensors:
            return f"{name} has no weights" + (f" of the variant {variant}" if variant else "")
        if fault := _weights_fault(inside, tensors):
            return f"{name}: {fault}"
    return None


def _weights_fault(folder: Path, names: list[str]) -> str | None:
    indices = [name for name in names if name.endswith(".json")]
    if not indices and any(re.search(r"-\d+-of-\d+", name) for name in names):
        return "the index of its split weights is missing"
    for index in indices:
        shards = set(((_read(folder / index) or {}).get("weight_map") or {}).values())
        if absent := sorted(shard for shard in shards if not (folder / shard).exists()):
            return f"{absent[0]} is missing"
    for name in names:
        if name.endswith(".safetensors") and (fault := safetensors_fault(folder / name)):
            return f"{name} is not whole ({fault})"
    return None


def folder_files(
    folder: Path, *, variant: str | None = None, weights: Collection[str] = tuple(MODELS), part: str | None = None
) -> dict[str, Path]:
    """The needed files of a pipeline folder by their names in it."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: folder / name for name in needed_files(names, variant=variant, weights=weights, part=part)}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
