"""Adapters on one model: which of them its layers apply, lean layers, and one for what is no plain LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F


class AdapterSwitch:
    """Chooses which adapter the layers of one model apply: one by name, or none.

    peft's public `set_adapter` and `enable_adapters` change ``requires_grad`` too, so that the fake score would no
    longer train. This sets the two private attributes that they set, on a cached list. Adapters start switched off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.refresh()

    def refresh(self) -> None:
        """Find the layers again after an adapter was added, and switch everything off."""
        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self._layers:
            layer.__class__ = LEAN.get(type(layer), type(layer))
        self._set(None)

    def _set(self, adapter: str | None) -> None:
        state: dict[str, Any] = {"_disable_adapters": adapter is None}
        if adapter is not None:
            state["_active_adapter"] = [adapter]
        for layer in self._layers:
            vars(layer).update(state)  # Module.__setattr__ would take four times as long
        self.active = adapter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Within the context the model applies `adapter` alone; the state before is restored on exit."""
        before = self.active
        if adapter == before:
            yield
            return
        self._set(adapter)
        try:
            yield
        finally:
            self._set(before)


class Lean:
    """For layers of peft: `adapted` where one plain LoRA is active, the base layer where none is, else peft's way."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Features to features, as the base layer has them."""
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or not _plain(self, active):
            return cast(Tensor, super().forward(x, *args, **kwargs))  # type: ignore[misc]
        return cast(Tensor, self.adapted(x, active[0]) if active else self.base_layer(x))


class LeanLinear(Lean, lora.Linear):
    """peft's linear layer with LoRA, y = W x + b + s up down x, with fewer passes over the features.

    The adapter computes in the dtype of the features, also where its own weights are wider. With gradient, and in 16
    bits, the product with `up` adds to W x + b as it is made. Without gradient in float32 the weight W + s up down is
    made anew in each call where that is the smaller product; in 16 bits most of the change would be rounded away.
    Whatever is no plain LoRA is left to peft.
    """

    def adapted(self, x: Tensor, name: str) -> Tensor:
        """(..., inputs) to (..., outputs), with the adapter of that name."""
        base, down, up, scale = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        inputs, outputs = down.shape[1], up.shape[0]
        smaller = inputs * outputs < x.numel() // inputs * (inputs + outputs)
        if smaller and type(base) is nn.Linear and _in_full_without_gradient(x):
            return F.linear(x, torch.addmm(base.weight, up, down, alpha=scale), base.bias)
        y = base(x)
        rows, features = y.reshape(-1, outputs), F.linear(x, down.to(x.dtype)).flatten(0, -2)
        if torch.is_grad_enabled():
            return torch.addmm(rows, features, up.to(features.dtype).t(), alpha=scale).view(y.shape)
        return rows.addmm_(features.to(y.dtype), up.to(y.dtype).t(), alpha=scale).view(y.shape)


class LeanConv2d(Lean, lora.Conv2d):
    """The same of a convolution: y = W * x + b + s up (down * x), where `up` is a product at each place."""

    def adapted(self, x: Tensor, name: str) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W'), with the adapter of that name."""
        base, down, up, scale = self.base_layer, self.lora_A[name], self.lora_B[name], self.scaling[name]
        columns, outputs = down.weight[0].numel(), len(up.weight)
        places = x.numel() // x.shape[1] // (down.stride[0] * down.stride[1])
        smaller = columns * outputs < places * (columns + outputs)
        if smaller and _like_its_adapter(base, down) and _in_full_without_gradient(x):
            change = (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(base.weight)
            return base._conv_forward(x, torch.add(base.weight, change, alpha=scale), base.bias)
        features = down._conv_forward(x, down.weight.to(x.dtype), None)
        change = up._conv_forward(features, up.weight.to(features.dtype), None)
        return cast(Tensor, base(x).add_(change, alpha=scale))


LEAN: dict[type[nn.Module], type[nn.Module]] = {lora.Linear: LeanLinear, lora.Conv2d: LeanConv2d}
"""What layers of peft become."""


def _plain(layer: Any, active: list[str]) -> bool:
    """Whether a layer of peft has to apply one adapter at most, which is nothing but a LoRA."""
    if layer.merged_adapters or len(active) > 1:
        return False
    return all(
        name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        for name in active
    )


def _in_full_without_gradient(x: Tensor) -> bool:
    """Whether a layer computes in float32 and keeps nothing."""
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.dtype == torch.float32 and not mixed and not torch.is_grad_enabled()


def _like_its_adapter(base: nn.Module, down: nn.Conv2d) -> bool:
    """Whether a convolution takes the same patches as `down`: peft gives that neither groups nor dilation."""
    if type(base) is not nn.Conv2d:
        return False
    return base.groups == 1 and base.dilation == down.dilation and base.padding_mode == down.padding_mode


class DenseAdapter(nn.Module, BaseTunerLayer):
    """A frozen linear layer or convolution with a full-size change of its weight: y = W x + bias + delta x.

    The form of LoHa, LoKr and DoRA here. peft takes it for one of its own layers, so LoRA adapters can be put around
    it. The change stays apart from W: added in half precision, most of it would be rounded away.

    Args:
        adapter: the name under which the change is switched on.
        delta: of the weight's shape; a buffer that is in no state dict.
    """

    def __init__(self, base_layer: nn.Module, adapter: str, delta: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter
        self.register_buffer("delta", delta, persistent=False)
        self.delta: Tensor
        layer = BaseTunerLayer.get_base_layer(self)
        if isinstance(layer, nn.Conv2d):
            self.groups = layer.groups  # peft's LoRA of a convolution asks the layer that it goes around
        self._active_adapter: list[str] = [adapter]
        self._disable_adapters = False

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight by `adapter`, which has to be the layer's own."""
        if adapter != self.adapter:
            raise KeyError(adapter)
        return self.delta

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.adapter not in cast(list[str], self.active_adapters):
            return result
        layer = BaseTunerLayer.get_base_layer(self)
        if isinstance(layer, nn.Conv2d):
            change = F.conv2d(x, self.delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            change = F.linear(x, self.delta)
        return result + change
