"""Generators that others have released: the files of CycleGAN, CUT and Scenimefy as a `ResNetGenerator`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.generator.resnet import ResNetGenerator

ENDING = ".pth"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of old versions of the norm, which does not use them."""


def load_released(path: str | Path, *, key: str) -> ResNetGenerator:
    """The network of a released file: names and sizes say its width, its blocks and whether it is antialiased.

    The convolutions of both come in the same order, so those of the file are taken by the numbers in their names. The
    file is read as tensors; nothing of it is run. UserError, which names `key`, if it is another network.
    """
    source = f"{key}={path}"
    if not Path(path).is_file():
        raise UserError(f"{source}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of untrusted bytes raise anything
        raise UserError(f"{source}: cannot be read as tensors alone, nothing of it was run") from error
    plain = isinstance(content, dict) and all(type(v) is Tensor and v.layout == torch.strided for v in content.values())
    if not plain:
        raise UserError(f"{source}: no weights of a network")
    names = sorted(content, key=lambda name: [int(number) for number in re.findall(r"\d+", str(name))])
    kept = [content[n] for n in names if not str(n).endswith((".filt", *STATISTICS))]
    kernels = [value for value in kept if value.ndim == 4]
    if len(kernels) < 6 or len(kernels) % 2:
        raise UserError(f"{source}: not the ResNet of CycleGAN, CUT or Scenimefy: it has {len(kernels)} convolutions")
    antialias = any(str(name).endswith(".filt") for name in names)
    network = ResNetGenerator(width=len(kernels[0]), blocks=(len(kernels) - 6) // 2, antialias=antialias)
    own = network.state_dict()
    order = [value for pair in zip(kernels, (v for v in kept if v.ndim != 4), strict=False) for value in pair]
    if [value.shape for value in order] != [value.shape for value in own.values()]:
        raise UserError(f"{source}: not the ResNet of CycleGAN, CUT or Scenimefy: its convolutions have other sizes")
    if not all(bool(value.isfinite().all()) for value in order):
        raise UserError(f"{source}: has values that are not finite; the file is damaged")
    network.load_state_dict(dict(zip(own, (value.float() for value in order), strict=True)))
    return network.eval()
