"""The networks through the real compiler, forward and back, in both memory layouts (`speed.compile=[generator]`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from smsff.generator import ResNetGenerator, UNetGenerator

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNetGenerator(widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1,), head_width=8),
    "resnet": lambda: ResNetGenerator(width=4, blocks=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_network_and_its_gradient_are_those_of_the_network(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(memory_format=layout)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, found = torch.rand(2, 3, 28, 36) * 2 - 1, []
    torch._dynamo.reset()
    for run in (network, torch.compile(network)):
        network.zero_grad()
        y = run(x)
        y.square().mean().backward()
        found.append([y.detach(), *[parameter.grad.clone() for parameter in network.parameters()]])
    for ours, compiled in zip(*found, strict=True):
        assert (ours - compiled).norm() <= 2e-3 * ours.norm() + 1e-6  # of a bias before a normalisation nothing is left
