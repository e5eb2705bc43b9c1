"""A frozen transformer in fewer bits: int8 by torchao, nf4 by bitsandbytes; adapters stay as they are."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from smsff.errors import UserError

Quantise = Literal["int8", "nf4"]
BITS: dict[Quantise, float] = {"int8": 8.0, "nf4": 4.5}
"""For each weight; those of nf4 with a float32 for every 64."""
_BLOCK = re.compile(r"(blocks|layers|refiner)\.\d+\.")


def check_quantise(kind: Quantise | None) -> None:
    """
    Raises:
        UserError: an unknown kind, or its package is not installed.
    """
    if kind is not None and kind not in BITS:
        raise UserError(f"teacher.quantise={kind!r} is not one of {', '.join(BITS)} (null: none)")
    if kind is not None:
        _package(kind)


def quantised_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The frozen linear layers in the transformer's blocks, by name; adapters and what lies outside are left alone."""
    return {
        name: layer
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in name and _BLOCK.search(name)
    }


def quantise_transformer(transformer: nn.Module, kind: Quantise) -> None:
    """Store the `quantised_layers` in fewer bits, in place. They compute in the dtype that they have now."""
    package = _package(kind)
    if kind == "int8":
        layers = set(quantised_layers(transformer).values())
        package.quantize_(transformer, package.Int8WeightOnlyConfig(), filter_fn=lambda layer, _: layer in layers)
        return
    for name, layer in quantised_layers(transformer).items():
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, _nf4(package, layer))


def _nf4(package: ModuleType, layer: nn.Linear) -> Any:
    with torch.device("meta"):
        new = package.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4"
        )
    new.weight = package.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    return new.to(layer.weight.device)  # this packs the weight


def _package(kind: Quantise) -> ModuleType:
    name = {"int8": "torchao", "nf4": "bitsandbytes"}[kind]
    try:
        return importlib.import_module({"int8": "torchao.quantization", "nf4": "bitsandbytes.nn"}[kind])
    except ImportError as error:
        raise UserError(f"teacher.quantise={kind}: needs {name}: pip install 'smsff[quantise]' ({error})") from error
