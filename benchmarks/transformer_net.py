"""The network of Johnson et al. 2016 as the "fast neural style" example of PyTorch has it, for comparison.

Written from its published structure: 9x9 convolution to 32 channels, two of stride 2 to 128, five residual blocks, two
nearest-neighbour enlargements with a 3x3 convolution each, 9x9 convolution to RGB; instance norm with affine
parameters, reflection padding. 1,679,235 parameters (6.7 MB): a sixth of the others.
"""

from __future__ import annotations

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.ReflectionPad2d(size // 2), nn.Conv2d(inputs, outputs, size, stride)]


def _normalised(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [*_convolution(inputs, outputs, size, stride), nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()]


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_normalised(channels, channels, 3), *_normalised(channels, channels, 3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class TransformerNet(nn.Module):
    """RGB (B, 3, H, W) to RGB, H and W multiples of 4."""

    multiple, receptive_radius = 4, None

    def __init__(self) -> None:
        super().__init__()
        down = [*_normalised(3, 32, 9), *_normalised(32, 64, 3, 2), *_normalised(64, 128, 3, 2)]
        up = [nn.Upsample(scale_factor=2), *_normalised(128, 64, 3), nn.Upsample(scale_factor=2)]
        up += [*_normalised(64, 32, 3), *_convolution(32, 3, 9)]
        self.body = nn.Sequential(*down, *[_Block(128) for _ in range(5)], *up)

    def forward(self, x: Tensor) -> Tensor:
        """Stylize x."""
        out: Tensor = self.body(x)
        return out
