"""A large picture through the U-Net stage by stage, each stage in tiles: nothing of it is computed twice.

A tile of the whole network has to be read with all the pixels that can act on it, 270 on each side of the default
network, so that tiles of 1024 pixels cost twice as much as the picture whole. Within one stage a pixel reaches a few
cells of the stage's own grid. What is alive at most, feature maps of the picture and one tile, is 95 bytes for a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.generator.unet import UNetGenerator
from smsff.stylize.tiles import spans

CELLS = 256
"""Side of a tile in cells of a stage's result: smaller ones have more cells at their borders to compute twice."""


def stage(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], *, size: tuple[int, int], reach: int, cells: int = CELLS
) -> Tensor:
    """function(*inputs), computed tile by tile.

    Args:
        function: Of maps (B, C, h, w) whose sides are the result's times one factor each, a whole number or 1/2.
        inputs: The maps.
        size: Height and width of the result; even.
        reach: How far, in cells of the result, an input can act beyond its own place.
        cells: Side of a tile.
    """
    scales = [Fraction(x.shape[-1], size[1]) for x in inputs]
    out: Tensor | None = None
    for row in spans(size[0], tile=cells, halo=reach, multiple=2):
        for column in spans(size[1], tile=cells, halo=reach, multiple=2):
            parts = [
                x[..., int(row.low * s) : int(row.high * s), int(column.low * s) : int(column.high * s)]
                for x, s in zip(inputs, scales, strict=True)
            ]
            piece = function(*parts)
            if out is None:
                out = piece.new_empty((*piece.shape[:2], *size))
            wanted = piece[..., row.start - row.low : row.stop - row.low, column.start - column.low :]
            out[..., row.start : row.stop, column.start : column.stop] = wanted[..., : column.stop - column.start]
    assert out is not None
    return out


def in_stages(net: UNetGenerator, x: Tensor, *, cells: int = CELLS) -> Tensor:
    """net(x), up to rounding, for a large x (B, 3, H, W) in [-1, 1], with small working memory; without gradient."""
    height, width = x.shape[-2:]
    k = net.multiple
    rgb = F.pad(x, (0, -width % k, 0, -height % k), mode="replicate")
    sides = [(rgb.shape[-2] >> level, rgb.shape[-1] >> level) for level in range(len(net.widths) + 1)]

    def first(pixels: Tensor) -> Tensor:
        features: Tensor = net.encoder[0](F.relu(net.stem(F.pixel_unshuffle(pixels, 2)), inplace=True))
        return features

    features = stage(first, [rgb], size=sides[1], reach=2 * net.encoder_blocks[0] + 1, cells=cells)
    skips = []
    for level, (down, blocks) in enumerate(zip(net.downs, net.encoder[1:], strict=True), start=2):
        skips.append(features)
        reach = 2 * net.encoder_blocks[level - 1]
        features = stage(
            lambda below, down=down, blocks=blocks: blocks(down(below)),
            [features],
            size=sides[level],
            reach=reach,
            cells=cells,
        )
    for level in reversed(range(len(skips))):
        up, blocks, reach = net.ups[level], net.decoder[level], 2 * net.decoder_blocks[level] + 2
        features = stage(
            lambda skip, above, up=up, blocks=blocks: blocks(skip + up(above)),
            [skips.pop(), features],
            size=sides[level + 1],
            reach=reach,
            cells=cells,
        )

    def head(below: Tensor, pixels: Tensor) -> Tensor:
        full = torch.cat((net.unfold(below), pixels), dim=1)
        return pixels + net.to_rgb(F.relu(net.refine(F.relu(net.mix(full), inplace=True)), inplace=True))

    return stage(head, [features, rgb], size=sides[0], reach=4, cells=cells)[..., :height, :width]
