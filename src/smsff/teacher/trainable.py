"""LoRA adapters that are trained: on a U-Net or a text encoder, in float32, from a start that is a pure function."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from smsff.errors import UserError
from smsff.teacher.lora.names import weighted_layers
from smsff.teacher.lora.switch import AdapterSwitch


def add_lora(
    model: Any,
    adapter: str,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str],
    seed: int,
    keys: tuple[str, str],
) -> dict[str, nn.Parameter]:
    """Add a trainable adapter that changes nothing yet: up zero, down uniform as torch initialises a linear layer.

    The chosen linear layers and convolutions become W + alpha / rank * up @ down; `target_modules` are their names or
    the ends of them (``to_q``, ``to_out.0``, ``conv1``). The down matrices depend on `seed` alone. `keys` are the
    config keys of `rank` and `target_modules`, to name in messages.

    Adding one touches the other adapters and switches itself on: refresh the model's `AdapterSwitch` afterwards, and
    freeze what is to be frozen. Returns the parameters by ``<layer>.lora_A.weight``, in a fixed order.
    """
    _check_targets(model, target_modules, keys[1])
    with warnings.catch_warnings():  # peft warns of a second adapter, which is what is wanted here
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated")  # what it lacks is for merging
        model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules)), adapter)
    parameters = {n.replace(f".{adapter}.", "."): p for n, p in model.named_parameters() if f".{adapter}." in n}
    _initialise(parameters, seed)
    return parameters


def checkpointing(switch: AdapterSwitch) -> Callable[..., Any]:
    """For ``enable_gradient_checkpointing``: recompute a block in the backward pass with the adapter of its forward.

    By the backward pass another adapter may be active, or none; a compiled graph has its adapter in it.
    """

    def run(block: nn.Module, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return checkpoint(block, *inputs, use_reentrant=False)
        adapter = switch.active

        def contexts() -> tuple[Any, Any]:
            return switch.using(adapter), switch.using(adapter)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    return run


def _check_targets(model: nn.Module, targets: Sequence[str], key: str) -> None:
    layers = list(weighted_layers(model))
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown or not targets:
        parts = [name.split(".") for name in layers]
        ends = sorted({".".join(part[-2:] if part[-1].isdigit() else part[-1:]) for part in parts})
        raise UserError(
            f"{key}: {', '.join(unknown) or 'empty'} fits no linear layer or convolution of the "
            f"{type(model).__name__}; there are {', '.join(ends)}"
        )


def _initialise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """float32; up zero, down uniform in ±1/sqrt(fan in), the same on every process whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter[0].numel())
            value.uniform_(-bound, bound, generator=generator)
        parameter.data = value.to(parameter.device)
