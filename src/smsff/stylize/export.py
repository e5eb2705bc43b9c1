"""From a training checkpoint to a model that can be used without the training code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import save_file

from smsff import __version__
from smsff.atomic import write_atomically
from smsff.data.images import printable
from smsff.errors import UserError
from smsff.generator.released import ENDING, load_released
from smsff.stylize.model_files import CONFIG, WEIGHTS, Network, build_generator, load_weights
from smsff.stylize.onnx_model import Agreement, Precision, export_onnx
from smsff.stylize.onnx_network import ONNX
from smsff.stylize.stylizer import load_stylizer, to_unit_range
from smsff.training.checkpoints import read_checkpoint

FORMATS = ("safetensors", "onnx")


@dataclass(frozen=True)
class Exported:
    """What `export_checkpoint` wrote.

    Attributes:
        averaged: Whether the averaged weights (EMA) were taken.
    """

    folder: Path
    files: dict[str, int]
    agreement: Agreement
    averaged: bool


def save_stylizer(generator: Network, folder: str | Path, meta: Mapping[str, Any] | None = None) -> None:
    """Write model.safetensors and config.json, each whole or not at all, over files of these names.

    `meta`: facts about the training for JSON, stored under "training".
    """
    folder = Path(folder)
    description = {
        "smsff_version": __version__,
        "generator": {"name": type(generator).__name__, "config": generator.config()},
        "parameters": sum(p.numel() for p in generator.parameters()),
        "range": "the network takes and gives RGB in [-1, 1]; clamp its output",
        "training": dict(meta or {}),
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    state = {
        name: value.detach().to("cpu", torch.float32).contiguous() for name, value in generator.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda path: save_file(state, path, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load_generator_from_checkpoint(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """The trained network of a checkpoint, averaged weights if there are any, and facts about its training.

    Args:
        path: A Lightning checkpoint, or a run folder (then its checkpoints/last.ckpt); or the .pth file of a generator
            that CycleGAN, CUT or Scenimefy has released.

    Raises:
        UserError: If the file is missing, is no checkpoint of smsff, or holds a single picture instead of a network.
    """
    path = checkpoint_file(path)
    if path.suffix.lower() == ENDING:
        return load_released(path, key="ckpt"), {"averaged_weights": False}
    source = f"ckpt={printable(path)}"
    checkpoint = read_checkpoint(path, key="ckpt", mmap=True)
    try:
        hyper, state = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        if hyper.get("task") == "style_lora":
            raise UserError(
                f"{source}: a style LoRA, not a stylizer; its files are in lora/ of the run, for style.lora="
            )
        name = str(hyper["generator"]["name"]).rpartition(".")[2]
        arguments = hyper["generator"]["config"]
        averaged = int(state.get("ema.n_averaged", 0)) > 0
        prefix = "ema.module." if averaged else "generator."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        facts = {**_training_facts(hyper), "step": int(checkpoint.get("global_step", 0)), "averaged_weights": averaged}
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{source}: a checkpoint, but not of an smsff training run (no {error})") from error
    if name in ("ImageGenerator", "LatentGenerator"):
        raise UserError(f"{source}: a per-image run has no network to export; its picture is in the run folder")
    return load_weights(build_generator(name, arguments, source=source), weights, source=source), facts


def checkpoint_file(path: str | Path) -> Path:
    """The checkpoint itself; a run folder stands for its last checkpoint."""
    path = Path(path)
    candidates = (path / "checkpoints" / "last.ckpt", path / "last.ckpt") if path.is_dir() else (path,)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    where = f", nor are {' or '.join(str(c) for c in candidates)}" if path.is_dir() else ""
    raise UserError(f"ckpt={path} is not a file{where}")


def default_folder(checkpoint: str | Path) -> Path:
    """The export folder of the checkpoint's run."""
    parent = checkpoint_file(checkpoint).resolve().parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "export"


def export_checkpoint(
    checkpoint: str | Path, out: str | Path | None, format: str = "safetensors", precision: str = "float32"
) -> Exported:
    """Export a checkpoint's network and compare what was written with the checkpoint.

    `out` is a folder, by default `export/` in the run folder; `format` "safetensors" or "onnx"; `precision`, of an ONNX
    file, "float32", "float16" or "int8". UserError for bad input, or if ONNX packages are missing.
    """
    if format not in FORMATS:
        raise UserError(f"format={format} is not one of {', '.join(FORMATS)}")
    if precision not in get_args(Precision):
        raise UserError(f"precision={precision} is not one of {', '.join(get_args(Precision))}")
    if precision != "float32" and format != "onnx":
        raise UserError(f"precision={precision} is one of ONNX files; add format=onnx")
    generator, meta = load_generator_from_checkpoint(checkpoint)
    folder = Path(out) if out else default_folder(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out={folder} is a file; it must be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        names, agreement = [ONNX], export_onnx(generator, folder / ONNX, meta, precision=cast(Precision, precision))
    else:
        names, size = [WEIGHTS, CONFIG], (101, 135)
        save_stylizer(generator, folder, meta)
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            difference = (load_stylizer(folder)(x) - to_unit_range(generator, x)).abs().max()
        agreement = Agreement({size: float(difference)})
    files = {name: (folder / name).stat().st_size for name in names}
    return Exported(folder, files, agreement, averaged=meta["averaged_weights"])


def _training_facts(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """What a model should say about itself: the style and the settings of the training, but no path of this machine."""
    style, config = hyper.get("style") or {}, hyper.get("config") or {}
    settings = ("steps", "seed", "objective", "regularizer", "relevance", "timesteps", "warmup", "prompts", "optimizer")
    facts = {
        "style": {key: style[key] for key in ("name", "words", "strength", "page") if style.get(key) is not None},
        "settings": {key: config[key] for key in settings if key in config},
    }
    return {key: value for key, value in facts.items() if value}
