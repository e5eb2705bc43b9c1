"""The default network: a U-Net of 43 MB that works on images of any size and starts as the identity.

Most parameters sit at 1/8 and 1/16 resolution, where they are cheap: nine times fewer multiply-adds than a
nine-block ResNet of the same size. Pixel-unshuffle (space to depth) makes half-resolution features without losing a
pixel; the last convolutions run at full resolution and see the RGB input again.

The only normalisation is of the channels of one pixel (`unit`), so a pixel depends on nothing beyond
`receptive_radius`, and an image stylized in tiles equals the image stylized whole. Residual blocks start as the
identity and their branch is scaled by `GAIN / channels`: one Adam step moves every weight by the learning rate, hence
the output of a convolution by an amount proportional to its number of inputs; the scale makes all levels equally
sensitive.

Sources: pixel shuffle: Shi et al. 2016; its checkerboard-free initialisation: Aitken et al. 2017,
and smoothing after it: Sugawara et al. 2018; residual blocks
with a scaled branch: Lim et al. 2017; zero-initialised branches: Zhang et al.
2019 (Fixup); normalisation by the root mean square: Zhang and Sennrich 2019, per pixel as in Karras et al. 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN = 32.0


def unit(x: Tensor) -> Tensor:
    """(B, C, H, W) divided by the root mean square of each pixel's channels.

    The mean is taken by a convolution: ONNX Runtime needs eight times as long for a mean over channels.
    """
    mean = x.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1])
    return x * torch.rsqrt(F.conv2d(x.square(), mean) + 1e-3)


def convolution(inputs: int, outputs: int, size: int, *, stride: int = 1, gain: float = 2**0.5) -> nn.Conv2d:
    """Padded to keep the size if odd; normal weights of variance gain^2 / fan-in (sqrt(2) before a ReLU), zero bias."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2)
    nn.init.normal_(conv.weight, std=gain * (inputs * size * size) ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    """x + GAIN/channels * conv(relu(conv(unit(x)))), the second convolution zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels, 3)
        self.second = convolution(channels, channels, 3, gain=0)
        self.scale = GAIN / channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return torch.add(x, self.second(F.relu(self.first(unit(x)), inplace=True)), alpha=self.scale)


def bordered(x: Tensor) -> Tensor:
    """Each side of (B, C, H, W) longer by the repeated border."""
    if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
        # Inductor takes the gradient of a padding for contiguous where it is channels_last, and stops there.
        x = torch.cat((x[..., :1, :], x, x[..., -1:, :]), dim=-2)
        return torch.cat((x[..., :1], x, x[..., -1:]), dim=-1)
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def smooth(x: Tensor) -> Tensor:
    """Each channel convolved with (1, 2, 1) / 4 both ways, border repeated; a period of two vanishes."""
    x = bordered(x)
    for _ in range(2):  # sums of views: five times faster than pooling
        x = x[..., 1:, :] + x[..., :-1, :]
        x = x[..., 1:] + x[..., :-1]
    return x / 16


class Up(nn.Module):
    """1x1 convolution and pixel shuffle, twice the size, without a checkerboard.

    The four sub-pixels start equal, and `smooth` keeps them so wherever the features do not vary, whatever is learned.
    Without it (`sharp`) a line may be one pixel wide.
    """

    def __init__(self, inputs: int, outputs: int, *, sharp: bool = False) -> None:
        super().__init__()
        self.sharp = sharp
        self.project = convolution(inputs, 4 * outputs, 1, gain=1)
        # pixel_shuffle reads channels as (output, sub-pixel): every group of four gets one set of weights
        self.project.weight.data = self.project.weight.data[::4].repeat_interleave(4, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, 2H, 2W)."""
        y = F.pixel_shuffle(self.project(unit(x)), 2)
        return y if self.sharp else smooth(y)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(count)])


class UNetGenerator(nn.Module):
    """RGB (B, 3, H, W) in [-1, 1] to RGB of the same shape, any H, W >= 1.

    y = x + delta(x), with delta zero at the start. y is *not* clamped, so that no gradient is lost in training; callers
    clamp when they make a picture (`Stylizer` and the ONNX model do).

    Args:
        widths: channels at 1/2, 1/4, 1/8, ... of the resolution.
        encoder_blocks: residual blocks at each level on the way down; the last number is for the lowest level.
        decoder_blocks: residual blocks at each level on the way up, highest resolution first, without the lowest level.
        head_width: channels at full resolution, the three of the input among them; 16 is what one vector holds.
    """

    space = "image"

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128, 320),
        encoder_blocks: Sequence[int] = (0, 1, 1, 5),
        decoder_blocks: Sequence[int] = (3, 1, 2),
        head_width: int = 16,
    ) -> None:
        super().__init__()
        levels = len(widths)
        if levels < 1 or len(encoder_blocks) != levels or len(decoder_blocks) != levels - 1:
            raise ValueError(
                f"UNetGenerator needs one entry of encoder_blocks for each of {levels} widths and one of "
                f"decoder_blocks for each but the last, got {len(encoder_blocks)} and {len(decoder_blocks)}"
            )
        if head_width < 4:
            raise ValueError(f"UNetGenerator head_width={head_width} must be at least 4: three of them are the input")
        self.widths, self.head_width = tuple(widths), head_width
        self.encoder_blocks, self.decoder_blocks = tuple(encoder_blocks), tuple(decoder_blocks)
        self.stem = convolution(12, widths[0], 3)
        self.encoder = nn.ModuleList(_blocks(c, n) for c, n in zip(widths, encoder_blocks, strict=True))
        self.downs = nn.ModuleList(convolution(a, b, 2, stride=2, gain=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(Up(b, a) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_blocks(c, n) for c, n in zip(widths[:-1], decoder_blocks, strict=True))
        self.unfold = Up(widths[0], head_width - 3, sharp=True)
        self.mix = convolution(head_width, head_width, 3)
        self.refine = convolution(head_width, head_width, 3)
        self.to_rgb = convolution(head_width, 3, 3, gain=0)

    def config(self) -> dict[str, object]:
        """Constructor arguments, JSON-ready."""
        return {
            "widths": list(self.widths),
            "encoder_blocks": list(self.encoder_blocks),
            "decoder_blocks": list(self.decoder_blocks),
            "head_width": self.head_width,
        }

    @property
    def multiple(self) -> int:
        """Sizes are padded to multiples of this inside; tiles that start at multiples of it see the same grid."""
        return 2 ** len(self.widths)

    @property
    def receptive_radius(self) -> int:
        """An upper bound, in pixels, of how far an input pixel can act on the output."""
        convolutions = [2 * n for n in self.encoder_blocks]
        for level, n in enumerate(self.decoder_blocks):
            convolutions[level] += 2 * n + 1  # and the smoothing
        convolutions[0] += 1
        reach = sum(n * 2 ** (level + 1) for level, n in enumerate(convolutions)) + 3
        return reach + self.multiple - 1  # anywhere inside one cell of the coarsest grid

    def forward(self, x: Tensor) -> Tensor:
        """Stylize x."""
        height, width = x.shape[-2:]
        k = self.multiple
        # always pad (perhaps by nothing) and without `%`: one exported graph then serves every size
        bottom, right = ((height + k - 1) // k) * k - height, ((width + k - 1) // k) * k - width
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate")
        features = F.relu(self.stem(F.pixel_unshuffle(padded, 2)), inplace=True)
        skips: list[Tensor] = []
        for blocks, down in zip(self.encoder[:-1], self.downs, strict=True):
            features = blocks(features)
            skips.append(features)
            features = down(features)
        features = self.encoder[-1](features)
        for level in reversed(range(len(skips))):
            features = self.decoder[level](skips[level] + self.ups[level](features))
        full = torch.cat((self.unfold(features), padded), dim=1)
        full = F.relu(self.refine(F.relu(self.mix(full), inplace=True)), inplace=True)
        delta: Tensor = self.to_rgb(full)[..., :height, :width]
        return x + delta
