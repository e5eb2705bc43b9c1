"""Compute a large picture tile by tile, with the result of computing it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

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


def in_tiles(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    size: tuple[int, int],
    *,
    tile: int,
    halo: int,
    multiple: int,
) -> Tensor:
    """function(*inputs), computed tile by tile; nothing else of the result's size is allocated.

    The inputs are maps (B, C, h, w) whose sides are those of the result times a whole number or 1/2. In pixels of the
    result: `size`, its height and width; `tile`, the side of a tile; `halo`, how far an input can act beyond its own
    place; `multiple`, the grid of the function, even for inputs of half its size.
    """
    scales = [Fraction(x.shape[-1], size[1]) for x in inputs]
    out: Tensor | None = None
    for row in spans(size[0], tile=tile, halo=halo, multiple=multiple):
        for column in spans(size[1], tile=tile, halo=halo, multiple=multiple):
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
