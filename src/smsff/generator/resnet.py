"""The peers' network: the nine-block ResNet of CycleGAN and CUT, for comparisons at equal size (11,378,179 parameters).

Written from the papers' description: 7x7 convolution to 64 channels, two stride-2 convolutions to 256, nine residual
blocks, two transposed convolutions back, 7x7 convolution and tanh; instance norm (no affine), reflection padding. CUT
and Scenimefy change size without aliasing: a convolution and then a blur with every second pixel; upwards linear
interpolation, which is a blur of doubled pixels, and then a convolution.

Sources: Johnson et al. 2016; Zhu et al. 2017 (CycleGAN); Park et al. 2020 (CUT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W), each pixel four times."""
        return F.pixel_shuffle(torch.stack([x] * 4, 2).flatten(1, 2), 2)


class ResNetGenerator(nn.Module):
    """RGB (B, 3, H, W) in [-1, 1] to RGB of the same shape in (-1, 1), any H, W >= 1.

    It does not start as the identity, and instance norm over the whole image makes every pixel depend on every other,
    so tiles do not add up to the whole image (`receptive_radius` is None).

    There are ``width`` channels at full resolution, and four times as many in the blocks at a quarter of it.
    """

    space = "image"
    multiple = 4
    receptive_radius = None

    def __init__(self, *, width: int = 64, blocks: int = 9, antialias: bool = False) -> None:
        super().__init__()
        self.width, self.blocks, self.antialias = width, blocks, antialias

        def normalised(conv: nn.Module, channels: int) -> list[nn.Module]:
            return [conv, nn.InstanceNorm2d(channels), nn.ReLU()]

        def means(stride: int) -> list[nn.Module]:
            """The blur [1, 2, 1] / 4: two means of two neighbours."""
            return [nn.AvgPool2d(2, stride=1), nn.AvgPool2d(2, stride=stride)]

        def down(channels: int) -> list[nn.Module]:
            conv = nn.Conv2d(channels, 2 * channels, 3, stride=1 if antialias else 2, padding=1)
            blur = [nn.ReflectionPad2d(1), *means(2)] if antialias else []
            return [*normalised(conv, 2 * channels), *blur]

        def up(channels: int) -> list[nn.Module]:
            if not antialias:
                conv: nn.Module = nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)
                return normalised(conv, channels // 2)
            conv = nn.Conv2d(channels, channels // 2, 3, padding=1)
            return [_Double(), nn.ReplicationPad2d(1), *means(1), *normalised(conv, channels // 2)]

        self.body = nn.Sequential(
            nn.ReflectionPad2d(3),
            *normalised(nn.Conv2d(3, width, 7), width),
            *down(width),
            *down(2 * width),
            *[_Block(4 * width) for _ in range(blocks)],
            *up(4 * width),
            *up(2 * width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def config(self) -> dict[str, object]:
        """Constructor arguments, JSON-ready."""
        return {"width": self.width, "blocks": self.blocks, "antialias": self.antialias}

    def forward(self, x: Tensor) -> Tensor:
        """Stylize x."""
        height, width = x.shape[-2:]
        k = self.multiple
        # two pixels at the lowest resolution are the least that reflection and instance norm can work on
        bottom: int = torch.sym_max(((height + k - 1) // k) * k, 2 * k) - height  # type: ignore[assignment]
        right: int = torch.sym_max(((width + k - 1) // k) * k, 2 * k) - width  # type: ignore[assignment]
        out: Tensor = torch.tanh(self.body(F.pad(x, (0, right, 0, bottom), mode="replicate")))
        return out[..., :height, :width]
