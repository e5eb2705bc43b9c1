"""Stylize a large picture piece by piece, with the result of doing it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One tile along one axis: pixels [start, stop) are wanted, [low, high) are read."""

    start: int
    stop: int
    low: int
    high: int


def spans(size: int, *, tile: int, halo: int, multiple: int) -> Iterator[Span]:
    """Tiles that cover [0, size), each with `halo` pixels of surroundings as far as the picture goes.

    Tile and halo are rounded up to multiples of `multiple`, so every tile starts on the network's own grid. A tile at
    the end of the picture ends there, so the network pads it exactly as it pads the whole.
    """
    tile, halo = (-(-n // multiple) * multiple for n in (max(tile, 1), halo))
    if size <= tile + halo:  # one piece reads no more than a tile with its surroundings would
        tile = size
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield Span(start, stop, max(start - halo, 0), min(stop + halo, size))


def in_tiles(network: Callable[[Tensor], Tensor], image: Tensor, *, tile: int, halo: int, multiple: int) -> Tensor:
    """network(image) for an image (B, C, H, W), computed tile by tile.

    Equal to network(image) if no pixel acts further than `halo` and the network works on a grid of `multiple` pixels.
    The result has the dtype that the network returns; nothing else of the picture's size is allocated.
    """
    out: Tensor | None = None
    for row in spans(image.shape[-2], tile=tile, halo=halo, multiple=multiple):
        for column in spans(image.shape[-1], tile=tile, halo=halo, multiple=multiple):
            piece = network(image[..., row.low : row.high, column.low : column.high])
            if out is None:
                out = torch.empty(image.shape, dtype=piece.dtype, device=piece.device)
            wanted = piece[..., row.start - row.low : row.stop - row.low, column.start - column.low :]
            out[..., row.start : row.stop, column.start : column.stop] = wanted[..., : column.stop - column.start]
    assert out is not None
    return out
