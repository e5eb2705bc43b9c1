"""Runs of train.py as rows of a comparison: started, resumed, and turned into pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image

from smsff.config.trust import find_target
from smsff.data.images import printable, to_image
from smsff.errors import UserError
from smsff.stylize.export import export_checkpoint
from smsff.stylize.model_files import WEIGHTS
from smsff.training.checkpoints import read_checkpoint
from smsff.training.run_folder import SUMMARY, finished
from smsff.weights.compose import composed
from smsff.weights.doctor import missing_weights


def train(folder: Path, overrides: Sequence[str], conf: Path) -> tuple[float, float]:
    """Run train.py, or what is left of it; its output goes to FOLDER/train.log.

    Returns:
        Seconds of the training, and its peak memory in bytes: of the GPU if it ran on one.

    Raises:
        UserError: weights are missing, with the command that fetches them, or the training has failed.
    """
    named = [override for override in overrides if not override.startswith(("data.", "seed="))]
    if problems := missing_weights(composed(conf, overrides), named):
        raise UserError("; ".join(problems))
    started = any((folder / "checkpoints").glob("*.ckpt"))
    memory = folder / "memory.json"
    if not (started and finished(folder) is not None):
        if not started:
            shutil.rmtree(folder, ignore_errors=True)  # interrupted before its first checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        script = conf.parent / "train.py"
        command = [sys.executable, str(script), *overrides, f"run_dir={folder}", *(["ckpt_path=last"] * started)]
        paths = [str(script.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with (folder / "train.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except KeyboardInterrupt:  # it was interrupted too, and saves a checkpoint
                process.wait()
                raise
        if os.waitstatus_to_exitcode(status) or finished(folder) is None:
            lines = (folder / "train.log").read_text(errors="replace").splitlines()
            errors = [line for line in lines if line.startswith("error: ")] or lines
            raise UserError(f"the training failed: {errors[-1] if errors else ''} ({printable(folder)}/train.log)")
        memory.write_text(json.dumps(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)))
    metrics = _metrics(folder)
    return metrics["wall_seconds"], metrics.get("gpu_memory") or json.loads(memory.read_text())


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    return json.loads(path.read_text()) if path.is_file() else {}


def trained_network(folder: Path, overrides: Sequence[str], conf: Path) -> Path:
    """Train a network in FOLDER/run and export it; the folder of the export. The checkpoints are removed.

    Raises:
        UserError: see `train`.
    """
    export = folder / "export"
    if not (export / WEIGHTS).is_file():
        train(folder / "run", overrides, conf)
        export_checkpoint(folder / "run", export)
    shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # a hundred of them fill a disk
    return export


def training_seconds(folder: Path) -> float | None:
    """How long the network of `trained_network` was trained; None if there is none."""
    return _metrics(folder / "run").get("wall_seconds")


@torch.no_grad()
def optimised_photo(folder: Path) -> Image.Image:
    """The result of a run on one photo, in the size of the run."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    value = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]["ema.module.value"]
    if config["generator"]["_target_"].endswith("LatentGenerator"):
        value = _teacher(json.dumps(config["teacher"])).latent.decode(value)
    return to_image((value[0].float().cpu() + 1) / 2)


@lru_cache(maxsize=1)
def _teacher(node: str) -> Any:
    """The teacher that decodes the latents, kept for the next photo."""
    config = json.loads(node)
    target = find_target(config, "teacher")
    return target(**{name: value for name, value in config.items() if name != "_target_"})
