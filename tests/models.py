"""A small network and its training checkpoint, for the tests of what is exported, loaded and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from smsff.generator import UNetGenerator


def network(seed: int = 0) -> UNetGenerator:
    """Narrow, with random weights, so that it changes pictures visibly."""
    torch.manual_seed(seed)
    net = UNetGenerator(widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1,), head_width=8)
    nn.init.normal_(net.to_rgb.weight, std=0.1)
    return net


def checkpoint(path: Path, net: nn.Module, *, ema: nn.Module | None = None, **changes: Any) -> Path:
    """A file with the parts of a training checkpoint that the export reads."""
    module = nn.ModuleDict({"generator": net})
    if ema is not None:
        module["ema"] = AveragedModel(ema)
        module["ema"].update_parameters(ema)
    style = {"name": "cel", "words": "cel shading", "strength": 1.0, "lora": "/home/someone/cel.safetensors"}
    hyper = {
        "generator": {"name": f"smsff.generator.any.{type(net).__name__}", "config": net.config()},
        "style": style,
        "config": {"steps": 7, "seed": 3, "run_dir": "/home/someone/run", "data": {"root": "/home/someone/photos"}},
    }
    content = {"state_dict": module.state_dict(), "hyper_parameters": hyper, "global_step": 7, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path
