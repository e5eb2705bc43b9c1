from __future__ import annotations

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smsff.generator import UNetGenerator
from smsff.generator.unet import smooth, unit

SMALL = {"widths": (8, 12, 16), "encoder_blocks": (1, 1, 2), "decoder_blocks": (2, 1), "head_width": 8}


def small(seed: int = 0, *, trained: bool = True) -> UNetGenerator:
    """A narrow network; ``trained`` gives every weight a random value, so that every path is in use."""
    torch.manual_seed(seed)
    net = UNetGenerator(**SMALL).double()
    if trained:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.15)
    return net


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_default_size_and_cost() -> None:
    net = UNetGenerator()
    assert 42.5e6 <= len(save(net.state_dict())) <= 43.5e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 < 5.5e9  # nine times below the nine-block ResNet


def test_most_parameters_at_low_resolution() -> None:
    net = UNetGenerator()
    low = [net.encoder[-1], net.encoder[-2], net.decoder[-1], net.downs[-1], net.ups[-1]]
    assert sum(p.numel() for part in low for p in part.parameters()) > 0.9 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 8), (8, 8), (33, 18)])
def test_starts_as_the_identity_at_any_size(size: tuple[int, int]) -> None:
    x = picture(2, 3, *size)
    assert torch.equal(small(trained=False)(x), x)


def test_padding_is_invisible() -> None:
    """Padding by hand to the grid and cropping gives what the network does by itself."""
    net, x = small(), picture(2, 3, 21, 30)
    padded = nn.functional.pad(x, (0, 2, 0, 3), mode="replicate")
    torch.testing.assert_close(net(x), net(padded)[..., :21, :30], rtol=0, atol=1e-12)


def test_no_batch_statistics() -> None:
    net, x = small().train(), picture(3, 3, 16, 24)
    one_by_one = torch.cat([net(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x), one_by_one, rtol=0, atol=1e-12)


def test_no_checkerboard_at_the_start() -> None:
    """A flat picture, away from the border, stays flat inside each 2x2 cell as soon as the last layer learns."""
    net = small(trained=False)
    nn.init.normal_(net.to_rgb.weight)
    y = net(torch.full((1, 3, 128, 128), 0.3, dtype=torch.float64))[..., 60:68, 60:68]
    assert (y - 0.3).abs().max() > 1e-3
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=0, atol=1e-10)


def test_receptive_radius_bounds_the_influence_of_a_pixel() -> None:
    net = small()
    radius = net.receptive_radius
    x = picture(1, 3, 2 * radius + 40, 24)
    changed = x.clone()
    row = radius + 17
    changed[..., row, 5] += 1.0
    acts = (net(changed) - net(x)).abs().amax((0, 1, 3)).gt(0).nonzero()
    reach = int((acts - row).abs().max())
    assert radius / 2 < reach <= radius


def test_every_parameter_gets_a_gradient() -> None:
    net = small()
    net(picture(2, 3, 19, 33)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_output_is_not_clamped() -> None:
    net = small(trained=False)
    nn.init.constant_(net.to_rgb.bias, 3.0)
    assert net(picture(1, 3, 8, 8)).max() > 2  # so a gradient can bring it back


def test_adam_learns_outlines_quickly() -> None:
    """A dark line along each edge and a darker tone: what a style is made of."""
    torch.manual_seed(0)
    net = UNetGenerator(widths=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1,), head_width=8)
    x = nn.functional.interpolate(picture(2, 3, 5, 5).float(), (40, 40), mode="nearest")
    edge = (x - nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).abs().amax(1, keepdim=True)
    target = 0.8 * x - (edge > 0.1).float()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    start = loss = (x - target).square().mean()
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25 * start


def test_config_rebuilds_it() -> None:
    net = small()
    again = UNetGenerator(**net.config()).double()
    again.load_state_dict(net.state_dict())
    x = picture(1, 3, 9, 20)
    assert torch.equal(net(x), again(x))


def test_wrong_block_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="decoder_blocks"):
        UNetGenerator(widths=(8, 8), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def test_a_head_without_room_for_features_is_refused() -> None:
    with pytest.raises(ValueError, match="head_width=3 must be at least 4"):
        UNetGenerator(head_width=3)


def test_unit_divides_by_the_root_mean_square() -> None:
    x = picture(2, 6, 5, 4)
    wanted = x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(unit(x), wanted, rtol=0, atol=1e-12)


def test_smooth_is_a_binomial_filter_with_its_border_repeated() -> None:
    x, row = picture(2, 3, 5, 4), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = (row[:, None] * row).expand(3, 1, 3, 3)
    wanted = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    torch.testing.assert_close(smooth(x), wanted, rtol=0, atol=1e-12)


def test_no_checkerboard_whatever_the_weights() -> None:
    """A flat picture shows no grid coarser than two pixels inside, also when sub-pixels have weights of their own."""
    torch.manual_seed(0)
    network = UNetGenerator(widths=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1), head_width=8).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        y = network(torch.full((1, 3, 192, 160), 0.3, dtype=torch.float64))
    inside = y[..., 72:120, 64:96]
    assert (y - 0.3).abs().max() > 0.01
    cells = torch.pixel_unshuffle(inside, 2)
    assert cells.std((2, 3)).max() < 1e-9
