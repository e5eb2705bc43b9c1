"""The lean layers give what peft's own give, in value and gradient, and leave to peft whatever is no plain LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn

from smsff.teacher.lora.switch import AdapterSwitch, LeanConv2d, LeanLinear

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(24, 40),
    "convolution": lambda: nn.Conv2d(24, 40, 3, padding=1),
    "stride": lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1, bias=False),
    "1 x 1": lambda: nn.Conv2d(24, 40, 1),
    "groups": lambda: nn.Conv2d(24, 40, 3, padding=1, groups=2),
    "dilation": lambda: nn.Conv2d(24, 40, 3, padding=2, dilation=2),
    "mirrored": lambda: nn.Conv2d(24, 40, 3, padding=1, padding_mode="reflect"),
}


def model(dtype: torch.dtype = torch.float32, kind: str = "linear", **config: Any) -> nn.Module:
    """One layer with adapter "a" in its own dtype, and one without; the switch has not seen it yet."""
    torch.manual_seed(0)
    last = nn.Linear(40, 8) if kind == "linear" else nn.Conv2d(40, 8, 1)
    net = nn.Sequential(LAYERS[kind](), last).to(dtype).requires_grad_(False)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": False} | config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LoRA adapter added to ConvNd layer with groups")
        inject_adapter_in_model(LoraConfig(**config), net, "a")
    return net


def on(net: nn.Module) -> AdapterSwitch:
    return AdapterSwitch(net)


def features(rows: int, dtype: torch.dtype = torch.float32, kind: str = "linear") -> Tensor:
    shape = (2, rows, 24) if kind == "linear" else (2, 24, rows, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows", [3, 50])  # fewer rows than a weight made anew is worth, and more
@pytest.mark.parametrize("gradient", [False, True])
def test_equals_peft(rows: int, gradient: bool, kind: str) -> None:
    if kind in ("dilation", "mirrored"):  # peft's own adapter has neither, and its patches have to match
        rows += 4
    net, x = model(kind=kind), features(rows, kind=kind)
    if kind == "dilation":
        net[0].lora_A["a"].padding = (1, 1)  # so that its result is as large as the layer's
    with torch.set_grad_enabled(gradient):
        wanted = net(x)
        with on(net).using("a"):
            found = net(x)
    assert type(net[0]) is (LeanLinear if kind == "linear" else LeanConv2d)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, net(x))  # switched off again


@pytest.mark.parametrize("kind", ["linear", "convolution", "stride"])
def test_gradients_equal_those_of_peft(kind: str) -> None:
    net, x = model(kind=kind), features(6, kind=kind).requires_grad_()
    trained = [p for name, p in net.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    wanted = torch.autograd.grad(net(x).square().sum(), [x, *trained])
    with on(net).using("a"):
        found = torch.autograd.grad(net(x).square().sum(), [x, *trained])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["all in 16 bits", "wide adapter"])
@pytest.mark.parametrize("mixed", [False, True], ids=["", "autocast"])
def test_autocast_and_16_bits(gradient: bool, wide: bool, mixed: bool, kind: str) -> None:
    """Frozen weights in bfloat16, the adapter in them or in float32: within the rounding of the exact result."""
    net, exact = model(torch.bfloat16, kind), model(kind=kind)
    exact.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    for name, parameter in net.named_parameters():
        if wide and "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(gradient)
    x = features(50, torch.bfloat16, kind)
    wanted = exact(x.float())
    with on(net).using("a"), torch.set_grad_enabled(gradient), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = net(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.02 * wanted.abs().max()
    if wide and gradient:
        found.float().square().sum().backward()
        for name, parameter in exact.named_parameters():
            parameter.requires_grad_("lora_" in name)
        exact(x.float()).square().sum().backward()
        for name, parameter in exact.named_parameters():
            if "lora_" in name:
                gradient_of = net.get_parameter(name).grad
                assert gradient_of.dtype == torch.float32
                assert (gradient_of - parameter.grad).norm() < 0.03 * parameter.grad.norm()


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
@pytest.mark.parametrize(("kind", "theirs"), [("linear", lora.Linear), ("convolution", lora.Conv2d)])
def test_other_kinds_are_left_to_peft(
    config: dict[str, Any], kind: str, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, asked = model(kind=kind, **config).eval(), []
    forward = theirs.forward
    monkeypatch.setattr(theirs, "forward", lambda self, *x, **k: (asked.append(1), forward(self, *x, **k))[1])
    switch, x = on(net), features(5, kind=kind)
    net(x)
    assert not asked  # switched off, all kinds are the plain layer
    with switch.using("a"):
        net(x)
    assert asked


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weights_that_are_given_for_one_call_are_used(kind: str) -> None:
    net, x = model(kind=kind), features(50, kind=kind)
    given = {"0.lora_B.a.weight": torch.zeros_like(net[0].lora_B["a"].weight)}
    with on(net).using("a"), torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(net, given, (x,)), net[1](net[0].base_layer(x)))
