from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smsff.generator import ResNetGenerator


def test_default_is_the_published_network() -> None:
    net = ResNetGenerator()
    assert sum(p.numel() for p in net.parameters()) == 11_378_179
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() / 2 * 16 == pytest.approx(49.55e9, rel=1e-3)  # at 256 x 256


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (16, 16), (17, 30)])
def test_any_size(size: tuple[int, int]) -> None:
    net = ResNetGenerator(width=4, blocks=1)
    y = net(torch.rand(2, 3, *size) * 2 - 1)
    assert y.shape == (2, 3, *size)
    assert y.abs().max() <= 1
    assert y.isfinite().all()


def test_samples_are_independent_and_gradients_flow() -> None:
    torch.manual_seed(0)
    net = ResNetGenerator(width=4, blocks=2).double()
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(net(x), torch.cat([net(x[:1]), net(x[1:])]), rtol=0, atol=1e-10)
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_config_rebuilds_it() -> None:
    net = ResNetGenerator(width=4, blocks=1)
    again = ResNetGenerator(**net.config())
    again.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 12, 20)
    assert torch.equal(net(x), again(x))
