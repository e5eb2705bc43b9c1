"""Shared by the tests of style LoRAs: a folder of pictures in a style, and options that make a training small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.io import write_png

from smsff.style_lora.adapter import LoraOptions
from smsff.style_lora.data import StylePictures
from smsff.style_lora.module import HeldOutLoss, Samples, StyleLora
from smsff.style_lora.objective import PowerTimesteps, StyleLoss
from smsff.style_lora.prompts import TriggerPrompts
from smsff.teacher.stable_diffusion import StableDiffusionTeacher
from smsff.training.optimizer import GroupOptions

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out"]


def write_pictures(folder: Path, count: int = 12, *, brightness: int = 200) -> Path:
    """Pictures of three shapes, two regions each, with captions for every second one."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(brightness)
    for i in range(count):
        height, width = [(32, 32), (24, 40), (40, 24)][i % 3]
        picture = torch.full((3, height, width), brightness, dtype=torch.uint8)
        picture[:, height // 3 :] = torch.randint(256, (3, 1, 1), dtype=torch.uint8, generator=generator)
        grain = torch.randint(-20, 21, (1, height, width), generator=generator)
        picture = (picture.int() + grain).clamp(0, 255).byte()
        write_png(picture, str(folder / f"{i:02d}.png"))
        if i % 2:
            (folder / f"{i:02d}.txt").write_text(f"caption {i}")
    return folder


def pictures(root: Path, **changes: Any) -> StylePictures:
    options: dict[str, Any] = {"resolution": 32, "stride": 8, "batch_size": 3, "steps": 4, "val_fraction": 0.2}
    return StylePictures(root=str(root), **{**options, **changes})


def style_lora(teacher: StableDiffusionTeacher, **changes: Any) -> StyleLora:
    arguments: dict[str, Any] = {
        "lora": LoraOptions(rank=2, alpha=2.0, target_modules=LAYERS),
        "prompts": TriggerPrompts(trigger="smsff style"),
        "timesteps": PowerTimesteps(),
        "loss": StyleLoss(),
        "unet_options": GroupOptions(lr=1e-3),
        "text_options": GroupOptions(lr=1e-3),
        "steps": 4,
        "held_out": HeldOutLoss(bands=(0, 300, 1000), draws=1),
        "samples": Samples(t0=200, steps=2),
        **changes,
    }
    return StyleLora(teacher=teacher, **arguments)
