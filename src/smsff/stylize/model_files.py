"""Files of a trained network, compared with their description before anything of their size is built.

A model folder can come from a stranger. Its description says which network it is and how large; from that alone follow
the name, shape and number type of every tensor, and the weights file must have just these. Only then is it read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smsff.config.check import check_arguments
from smsff.config.schema import check_ranges
from smsff.data.images import printable
from smsff.errors import UserError, shown
from smsff.generator import ResNetGenerator, UNetGenerator

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Network: TypeAlias = UNetGenerator | ResNetGenerator
NETWORKS: dict[str, type[Network]] = {network.__name__: network for network in (UNetGenerator, ResNetGenerator)}

MAX_DESCRIPTION = 1_000_000
"""Bytes of config.json."""
MAX_LEVELS = 8
MAX_PARAMETERS = 500_000_000
"""A network with more (2 GB) is none of ours, whatever its description says."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def build_generator(name: object, config: object, *, source: str) -> Network:
    """The network `name` with constructor arguments `config`, on PyTorch's meta device: without memory for weights.

    Raises:
        UserError: If there is no such network, it does not take these arguments, or it would be too large.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(f"{source}: {shown(name)} is not one of the networks {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise UserError(f"{source}: {name} cannot be built from {shown(config)}")
    try:
        check_arguments(network, config, "generator")
        check_ranges({"generator": dict(config)})
        long = [key for key, value in config.items() if isinstance(value, list) and len(value) > MAX_LEVELS]
        if long:
            raise UserError(f"generator.{long[0]} has more than {MAX_LEVELS} entries")
        with torch.device("meta"):
            built: Network = network(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: {name} cannot be built from {shown(config)}: {error}") from error
    count = sum(parameter.numel() for parameter in built.parameters())
    if count > MAX_PARAMETERS:
        raise UserError(f"{source}: {name} would have {count:,} parameters; at most {MAX_PARAMETERS:,} are built")
    return built


def load_weights(generator: Network, state: Mapping[str, Any], *, source: str) -> Network:
    """Fill a network of `build_generator`; in evaluation mode, float32.

    Raises:
        UserError: If names, shapes or number types do not match, or a value is not finite.
    """
    plain = {name: value for name, value in state.items() if type(value) in (Tensor, torch.nn.Parameter)}
    dense = {n: x for n, x in plain.items() if x.layout == torch.strided and not x.is_quantized and not x.is_meta}
    check_fit(generator, {name: (tuple(x.shape), x.dtype) for name, x in dense.items()}, source=source)
    filled: dict[str, Tensor] = {}
    for name, value in state.items():
        filled[name] = value.detach().to("cpu", torch.float32, copy=True)
        if not bool(torch.isfinite(filled[name]).all()):
            raise UserError(f"{source}: the weights {name} have values that are not finite; the model is damaged")
    generator.load_state_dict(filled, assign=True)
    return generator.requires_grad_(True).eval()


def check_fit(generator: Network, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]], *, source: str) -> None:
    """Compare names, shapes and number types with those of a network; UserError, which names the first that differs."""
    wanted = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    problem = None
    if missing := [name for name in wanted if name not in found]:
        problem = f"{len(missing)} of {len(wanted)} tensors are missing, the first is {missing[0]}"
    elif strange := [name for name in found if name not in wanted]:
        problem = f"there is no {shown(strange[0])} in it"
    elif other := [name for name in wanted if found[name][0] != wanted[name]]:
        problem = f"{other[0]} has shape {shown(found[other[0]][0])}, not {wanted[other[0]]}"
    elif kinds := [name for name in wanted if found[name][1] not in FLOATS.values()]:
        problem = f"{kinds[0]} is {found[kinds[0]][1]}, not a floating-point number of 16 to 64 bits"
    if problem:
        raise UserError(f"{source}: the weights do not fit the network: {problem}")


def read_description(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Name and constructor arguments of the network in config.json, not yet checked, and the whole file.

    Raises:
        UserError: If it is no description.
    """
    path = folder / CONFIG
    source = printable(path)
    try:
        if path.stat().st_size > MAX_DESCRIPTION:
            raise UserError(f"{source}: not the description of an exported model (more than {MAX_DESCRIPTION:,} bytes)")
        config = json.loads(path.read_text(encoding="utf-8"))
        return config["generator"]["name"], config["generator"]["config"], config
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{source}: not the description of an exported model ({reason})") from error


def load_network(folder: Path) -> tuple[Network, dict[str, Any]]:
    """The network of a folder with config.json and model.safetensors, and what config.json says.

    Raises:
        UserError: If a file cannot be read, or the two do not belong together.
    """
    name, arguments, config = read_description(folder)
    generator = build_generator(name, arguments, source=printable(folder / CONFIG))
    path = folder / WEIGHTS
    source = printable(path)
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
            kinds = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            found = {key: (shape, FLOATS.get(kind, torch.int8)) for key, (shape, kind) in kinds.items()}
            check_fit(generator, found, source=source)
            state = {key: file.get_tensor(key) for key in kinds}
            return load_weights(generator, state, source=source), config
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source}: cannot be read as safetensors: {error}") from error
