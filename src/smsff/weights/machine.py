"""What this machine has, as far as a training minds: graphics cards, threads, memory, versions, room to write."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "peft", "huggingface-hub", "hydra-core")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the main packages, by their metadata; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def describe_machine() -> dict[str, Any]:
    """Threads, bytes of memory, and graphics cards as torch sees them, with the driver's own view beside it."""
    import torch

    usable = torch.cuda.is_available()
    return {
        "cpu_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "memory_free": psutil.virtual_memory().available,
        "torch_cuda": torch.version.cuda,
        "driver": _driver(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())] if usable else [],
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "memory": total, "memory_free": free, "capability": capability, "bf16": bf16}


def _driver() -> str | None:
    """Version of NVIDIA's driver, if its tool is there and finds a card."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def runs_on_gpu(machine: Mapping[str, Any], trainer: Mapping[str, Any]) -> bool:
    """Whether the trainer would take a graphics card."""
    accelerator = trainer.get("accelerator")
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and bool(machine["gpus"]))


def hardware_problems(machine: Mapping[str, Any], trainer: Mapping[str, Any], dtype: str | None) -> list[str]:
    """What the trainer's settings ask for and the machine does not have, one sentence each."""
    gpus, accelerator, devices = machine["gpus"], trainer.get("accelerator"), trainer.get("devices")
    precision, found = str(trainer.get("precision", "")), []
    on_gpu = runs_on_gpu(machine, trainer)
    if machine["driver"] and not gpus:
        found.append(
            f"NVIDIA driver {machine['driver']} is there, but torch (built for CUDA {machine['torch_cuda'] or 'none'}) "
            "cannot use the card: install a torch build that fits the driver"
        )
    if accelerator in ("gpu", "cuda") and not gpus:
        found.append(f"trainer.accelerator={accelerator}: no graphics card was found; trainer=cpu runs without")
    elif on_gpu and isinstance(devices, int) and devices > len(gpus):
        found.append(f"trainer.devices={devices}: this machine has {len(gpus)}")
    without = sorted({gpu["name"] for gpu in gpus if not gpu["bf16"]}) if on_gpu else []
    if without and ("bf16" in precision or dtype == "bfloat16"):
        found.append(
            f"{', '.join(without)} computes no bfloat16: take trainer.precision=32-true and teacher.dtype=float16"
        )
    if not on_gpu and dtype == "float16":
        found.append("teacher.dtype=float16: too slow on CPU to be of use; take float32 or bfloat16")
    return found


def room(folder: Path) -> dict[str, Any]:
    """Whether a folder (or the nearest one above it that exists) can be written to, and how much is free there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            reason = None
    except OSError as error:
        reason = error.strerror or str(error)
    return {"path": str(folder), "on": str(place), "free": shutil.disk_usage(place).free, "reason": reason}
