"""Putting changes of weights on a model as one adapter that can be switched on and off."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.lora.names import weight_of, weighted_layers
from smsff.teacher.lora.switch import DenseAdapter
from smsff.teacher.lora.weights import LowRank


def add_adapter(model: nn.Module, changes: Iterable[tuple[str, LowRank | Tensor]], adapter: str) -> None:
    """Add `changes`, several for one layer too, as the frozen adapter `adapter`, in the dtype of the layers.

    Pairs of low rank become a LoRA adapter of peft, several of one layer side by side: their ranks add up and the sum
    is exact. Tensors of a weight's size become a `DenseAdapter`, inside of peft's layers.

    Args:
        changes: names of layers (as in `weighted_layers`) and what is added to their weights.

    Raises:
        UserError: if changes of a layer that are finite each are not so together.
        ValueError: if the model has an adapter of that name.
    """
    if any(adapter in getattr(m, "lora_A", ()) or getattr(m, "adapter", None) == adapter for m in model.modules()):
        raise ValueError(f"the model has an adapter {adapter!r} already")
    pairs: dict[str, list[LowRank]] = {}
    full: dict[str, Tensor] = {}
    for name, change in changes:
        if isinstance(change, LowRank):
            pairs.setdefault(name, []).append(change)
        else:
            full[name] = full[name] + change if name in full else change
    if full:
        _add_full(model, full, adapter)
    if pairs:
        _add_lora(model, {name: side_by_side(terms) for name, terms in pairs.items()}, adapter)


def side_by_side(terms: list[LowRank]) -> LowRank:
    """One pair for the sum of several: the largest scale stays, the others are multiplied into the up matrices."""
    if len(terms) == 1:
        return terms[0]
    scale = max((term.scale for term in terms), key=abs)
    ratios = [term.scale / scale if scale else 0.0 for term in terms]
    down = torch.cat([term.down.float() for term in terms])
    up = torch.cat([term.up.float() * ratio for term, ratio in zip(terms, ratios, strict=True)], dim=1)
    return LowRank(down, up, scale)


def _add_full(model: nn.Module, deltas: dict[str, Tensor], adapter: str) -> None:
    layers = weighted_layers(model)
    new: dict[nn.Module, nn.Module] = {}
    for name, delta in deltas.items():
        new[layers[name]] = DenseAdapter(layers[name], adapter, _like(name, delta, weight_of(layers[name])))
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    for parent, name, child in places:
        if child in new:
            setattr(parent, name, new[child])


def _add_lora(model: nn.Module, pairs: dict[str, LowRank], adapter: str) -> None:
    by_rank: dict[int, list[str]] = {}
    for name, pair in pairs.items():
        by_rank.setdefault(len(pair.down), []).append(re.escape(name))
    config = LoraConfig(
        target_modules="|".join(re.escape(name) for name in pairs),
        # One key for all layers of a rank: peft tries them one after the other on every layer.
        rank_pattern={"|".join(names): rank for rank, names in by_rank.items()},
        init_lora_weights=False,
        inference_mode=True,
    )
    with warnings.catch_warnings():  # peft warns of a second adapter, which is what is wanted here
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter)
    layers = weighted_layers(model)
    for name, pair in pairs.items():
        layer = layers[name]
        assert isinstance(layer, LoraLayer)
        for part, value in ((layer.lora_A[adapter], pair.down), (layer.lora_B[adapter], pair.up)):
            value = _like(name, value, weight_of(layer)).reshape(part.weight.shape)
            part.weight = nn.Parameter(value.contiguous(), requires_grad=False)
        layer.scaling[adapter] = pair.scale


def _like(name: str, value: Tensor, weight: Tensor) -> Tensor:
    value = value.to(weight.device, weight.dtype)
    if not torch.isfinite(value).all():
        raise UserError(f"teacher.lora: {name}: the LoRAs together are not finite in {weight.dtype}")
    return value
