"""A large picture through the U-Net stage by stage, each stage in tiles: nothing of it is computed twice.

A tile of the whole network has to be read with all the pixels that can act on it, 270 on each side of the default
network, so that tiles of 1024 pixels cost twice as much as the picture whole. Within one stage a pixel reaches a few
cells of the stage's own grid. What is alive at most, feature maps of the picture and one tile, is 95 bytes for a pixel.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smsff.generator.unet import UNetGenerator
from smsff.stylize.tiles import in_tiles

CELLS = 256
"""Side of a tile in cells of a stage's result: smaller ones have more cells at their borders to compute twice."""


def in_stages(net: UNetGenerator, x: Tensor, *, cells: int = CELLS) -> Tensor:
    """net(x), up to rounding, for a large x (B, 3, H, W) in [-1, 1], with small working memory; without gradient."""
    height, width = x.shape[-2:]
    stage, k = partial(in_tiles, tile=cells, multiple=2), net.multiple
    rgb = F.pad(x, (0, -width % k, 0, -height % k), mode="replicate")
    sides = [(rgb.shape[-2] >> level, rgb.shape[-1] >> level) for level in range(len(net.widths) + 1)]

    def first(pixels: Tensor) -> Tensor:
        features: Tensor = net.encoder[0](F.relu(net.stem(F.pixel_unshuffle(pixels, 2)), inplace=True))
        return features

    features = stage(first, [rgb], sides[1], halo=2 * net.encoder_blocks[0] + 1)
    skips = []
    for level, (down, blocks) in enumerate(zip(net.downs, net.encoder[1:], strict=True), start=2):
        skips.append(features)
        halo = 2 * net.encoder_blocks[level - 1]
        features = stage(nn.Sequential(down, blocks), [features], sides[level], halo=halo)
    for level in reversed(range(len(skips))):
        up, blocks, halo = net.ups[level], net.decoder[level], 2 * net.decoder_blocks[level] + 2

        def joined(skip: Tensor, above: Tensor, up: nn.Module = up, blocks: nn.Module = blocks) -> Tensor:
            result: Tensor = blocks(skip + up(above))
            return result

        features = stage(joined, [skips.pop(), features], sides[level + 1], halo=halo)

    def head(below: Tensor, pixels: Tensor) -> Tensor:
        full = torch.cat((net.unfold(below), pixels), dim=1)
        return pixels + net.to_rgb(F.relu(net.refine(F.relu(net.mix(full), inplace=True)), inplace=True))

    return stage(head, [features, rgb], sides[0], halo=4)[..., :height, :width]
