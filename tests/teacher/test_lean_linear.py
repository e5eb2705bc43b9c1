"""The lean layer gives what peft's own gives, in value and gradient, and leaves to peft whatever is no plain LoRA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn

from smsff.teacher.lora_switch import AdapterSwitch, LeanLinear


def model(dtype: torch.dtype = torch.float32, **config: Any) -> nn.Module:
    """One layer with adapter "a" in its own dtype, and one without; the switch has not seen it yet."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8)).to(dtype).requires_grad_(False)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": False} | config
    inject_adapter_in_model(LoraConfig(**config), net, "a")
    return net


def on(net: nn.Module) -> AdapterSwitch:
    return AdapterSwitch(net)


def features(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, rows, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("rows", [1, 50])  # fewer rows than a weight made anew is worth, and more
@pytest.mark.parametrize("gradient", [False, True])
def test_equals_peft(rows: int, gradient: bool) -> None:
    net, x = model(), features(rows)
    with torch.set_grad_enabled(gradient):
        wanted = net(x)
        with on(net).using("a"):
            found = net(x)
    assert type(net[0]) is LeanLinear
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, net(x))  # switched off again


def test_gradients_equal_those_of_peft() -> None:
    net, x = model(), features(3).requires_grad_()
    trained = [p for name, p in net.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    wanted = torch.autograd.grad(net(x).square().sum(), [x, *trained])
    with on(net).using("a"):
        found = torch.autograd.grad(net(x).square().sum(), [x, *trained])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_autocast_and_16_bits(gradient: bool, wide: bool) -> None:
    """Frozen weights in bfloat16, the adapter in them or in float32: within the rounding of the exact result."""
    net, exact = model(torch.bfloat16), model()
    exact.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    if wide:
        for name, parameter in net.named_parameters():
            parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    x = features(50, torch.bfloat16)
    wanted = exact(x.float())
    context: Callable[[], Any] = (lambda: torch.autocast("cpu", torch.bfloat16)) if wide else nullcontext
    with on(net).using("a"), torch.set_grad_enabled(gradient), context():
        found = net(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_change_below_the_rounding_of_its_weight_is_kept_in_16_bits() -> None:
    net = model(torch.bfloat16)
    layer = net[0]
    with torch.no_grad():
        layer.lora_B["a"].weight.mul_(1e-4)
        x = features(50, torch.bfloat16)
        alone = layer.lora_B["a"](layer.lora_A["a"](x)) * layer.scaling["a"]
        layer.base_layer.bias.zero_()
        layer.base_layer.weight[::2] = 0  # half of the outputs are the change and nothing else
        with on(net).using("a"):
            torch.testing.assert_close(layer(x)[..., ::2], alone[..., ::2], rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_other_kinds_are_left_to_peft(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = model(**config).eval(), []
    theirs = lora.Linear.forward
    monkeypatch.setattr(lora.Linear, "forward", lambda self, *x, **k: (asked.append(1), theirs(self, *x, **k))[1])
    switch, x = on(net), features(5)
    net(x)
    assert not asked  # switched off, all kinds are the plain layer
    with switch.using("a"):
        net(x)
    assert asked


def test_weights_that_are_given_for_one_call_are_used() -> None:
    net, x = model(), features(50)
    given = {"0.lora_B.a.weight": torch.zeros(40, 4)}
    with on(net).using("a"), torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(net, given, (x,)), net[1](net[0].base_layer(x)))
