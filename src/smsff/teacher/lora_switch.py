"""Adapters on one model: which of them its layers apply, and a layer for those that are no plain LoRA."""

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

    peft's own `set_adapter` and `disable_adapters` walk the model and flip ``requires_grad`` on the way. This touches
    only the two attributes the layers read, on a cached list. Adapters start switched off.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.refresh()

    def refresh(self) -> None:
        """Find the layers again after an adapter was added, and switch everything off."""
        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self._layers:
            if type(layer) is lora.Linear:
                layer.__class__ = LeanLinear
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


class LeanLinear(lora.Linear):
    """peft's linear layer with LoRA, y = W x + b + s up down x, with fewer passes over the features.

    With gradient, and in 16 bits, the product with `up` adds to W x + b as it is made. Without gradient in float32 the
    weight W + s up down is made anew in each call where that is the smaller product; in 16 bits most of the change
    would be rounded away. Whatever is no plain LoRA is left to peft.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        mixed = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
        active = [] if self._disable_adapters else [name for name in self._active_adapter if name in self.lora_A]
        if (
            args
            or kwargs
            or self.merged_adapters
            or len(active) > 1
            or not all(self._plain(n, x, mixed) for n in active)
        ):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base = self.base_layer
        if not active:
            return cast(Tensor, base(x))
        down, up, scale = (self.lora_A[active[0]].weight, self.lora_B[active[0]].weight, self.scaling[active[0]])
        inputs, outputs = down.shape[1], up.shape[0]
        learns = torch.is_grad_enabled()
        smaller = inputs * outputs < x.numel() // inputs * (inputs + outputs)
        if smaller and not learns and not mixed and x.dtype == torch.float32 and type(base) is nn.Linear:
            return F.linear(x, torch.addmm(base.weight, up, down, alpha=scale), base.bias)
        y = base(x)
        rows, features = y.reshape(-1, outputs), F.linear(x, down).flatten(0, -2)
        if learns:
            return torch.addmm(rows, features, up.t(), alpha=scale).view(y.shape)
        return rows.addmm_(features.to(y.dtype), up.t().to(y.dtype), alpha=scale).view(y.shape)

    def _plain(self, name: str, x: Tensor, mixed: bool) -> bool:
        """Whether an adapter is nothing but a LoRA in the dtype of the features, or autocast sees to the dtypes."""
        return (
            name not in self.lora_variant
            and isinstance(self.lora_dropout[name], nn.Identity)
            and self.lora_B[name].bias is None
            and (mixed or x.dtype == self.lora_A[name].weight.dtype)
        )


class DenseAdapter(nn.Module, BaseTunerLayer):
    """A frozen linear layer or convolution with a full-size change of its weight: y = W x + bias + delta x.

    It is what LoHa, LoKr and DoRA come to once strength, alpha and magnitudes are known. peft takes it for one of its
    own layers, so LoRA adapters can be put around it. The change stays apart from W: added in half precision, most of
    it would be rounded away.

    Args:
        base_layer: the layer, with adapters or without.
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
        if self._disable_adapters or self.adapter not in self._active_adapter:
            return result
        layer = BaseTunerLayer.get_base_layer(self)
        if isinstance(layer, nn.Conv2d):
            change = F.conv2d(x, self.delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            change = F.linear(x, self.delta)
        return result + change
