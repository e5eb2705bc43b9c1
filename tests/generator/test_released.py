"""Released generators of CycleGAN, CUT and Scenimefy, against a network that is built by their description."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.generator import ResNetGenerator
from smsff.generator.released import load_released


class Resize(nn.Module):
    """A depthwise blur with stride 2, or its transpose, whose kernel is in the file as ``filt``."""

    def __init__(self, channels: int, taps: list[float], *, up: bool) -> None:
        super().__init__()
        row = torch.tensor(taps)
        kernel = row[:, None] * row / row.sum() ** 2 * (4 if up else 1)
        self.register_buffer("filt", kernel.repeat(channels, 1, 1, 1))
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            out = F.conv_transpose2d(F.pad(x, (1, 1, 1, 1), "replicate"), self.filt, stride=2, groups=x.shape[1])
            return out[..., 3:-3, 3:-3]
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filt, stride=2, groups=x.shape[1])


class Residual(nn.Module):
    def __init__(self, channels: int, *, dropout: bool) -> None:
        super().__init__()

        def layer(*after: nn.Module) -> list[nn.Module]:
            return [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), *after]

        self.conv_block = nn.Sequential(*layer(nn.ReLU(), *[nn.Dropout(0.5)] * dropout), *layer())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Released(nn.Module):
    """The layers with the numbers that they have in the files."""

    def __init__(self, width: int, blocks: int, *, antialias: bool, dropout: bool = False) -> None:
        super().__init__()

        def normed(conv: nn.Module, channels: int) -> list[nn.Module]:
            return [conv, nn.InstanceNorm2d(channels), nn.ReLU()]

        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(3, width, 7), width)]
        for c in (width, 2 * width):
            layers += normed(nn.Conv2d(c, 2 * c, 3, stride=1 if antialias else 2, padding=1), 2 * c)
            layers += [Resize(2 * c, [1.0, 2.0, 1.0], up=False)] * antialias
        layers += [Residual(4 * width, dropout=dropout) for _ in range(blocks)]
        for c in (4 * width, 2 * width):
            if antialias:
                layers += [
                    Resize(c, [1.0, 3.0, 3.0, 1.0], up=True),
                    *normed(nn.Conv2d(c, c // 2, 3, padding=1), c // 2),
                ]
            else:
                layers += normed(nn.ConvTranspose2d(c, c // 2, 3, 2, padding=1, output_padding=1), c // 2)
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@pytest.mark.parametrize(("antialias", "dropout", "blocks"), [(True, False, 9), (False, True, 11), (True, True, 2)])
def test_gives_what_the_released_network_gives(tmp_path: Path, antialias: bool, dropout: bool, blocks: int) -> None:
    torch.manual_seed(0)
    theirs = Released(6, blocks, antialias=antialias, dropout=dropout).eval()
    torch.save(theirs.state_dict(), tmp_path / "latest_net_G.pth")
    ours = load_released(tmp_path / "latest_net_G.pth", key="model")
    x = torch.rand(2, 3, 20, 36) * 2 - 1
    assert ours.config() == {"width": 6, "blocks": blocks, "antialias": antialias}
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_statistics_of_old_norms_are_not_needed(tmp_path: Path) -> None:
    state = Released(4, 1, antialias=False).state_dict()
    state |= {f"model.2.{name}": torch.zeros(4) for name in ("running_mean", "running_var")}
    torch.save(state | {"model.2.num_batches_tracked": torch.tensor(3)}, tmp_path / "old.pth")
    assert load_released(tmp_path / "old.pth", key="model").blocks == 1


def test_other_networks_and_damage_are_refused_by_name(tmp_path: Path) -> None:
    state = Released(4, 1, antialias=True).state_dict()
    cases = {
        "other sizes": {**state, "model.1.weight": torch.zeros(5, 3, 7, 7)},
        "convolutions": {
            name: value for name, value in state.items() if "conv_block" not in name and "model.4" not in name
        },
        "not finite": {**state, "model.1.bias": torch.full((4,), float("nan"))},
        "no weights": {"epoch": 3},
        "nothing of it was run": ResNetGenerator(width=4, blocks=1),
    }
    for message, content in cases.items():
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UserError, match=f"model=.*x.pth: .*{message}"):
            load_released(tmp_path / "x.pth", key="model")
    with pytest.raises(UserError, match="no such file"):
        load_released(tmp_path / "absent.pth", key="model")
