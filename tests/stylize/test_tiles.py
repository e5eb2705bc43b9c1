from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.generator import UNetGenerator
from smsff.stylize.tiles import in_tiles, spans


@pytest.mark.parametrize(
    ("size", "tile", "halo", "multiple"), [(1, 16, 8, 4), (100, 16, 8, 4), (97, 30, 7, 8), (64, 64, 9, 16)]
)
def test_spans_cover_once_and_stay_on_the_grid(size: int, tile: int, halo: int, multiple: int) -> None:
    found = list(spans(size, tile=tile, halo=halo, multiple=multiple))
    assert [n for s in found for n in range(s.start, s.stop)] == list(range(size))
    for s in found:
        assert s.low % multiple == 0
        assert s.low in (0, s.start - -(-halo // multiple) * multiple)
        assert s.high == size or s.high >= s.stop + halo


def test_a_picture_not_much_larger_than_a_tile_is_one_piece() -> None:
    assert len(list(spans(72, tile=64, halo=8, multiple=8))) == 1
    assert len(list(spans(73, tile=64, halo=8, multiple=8))) == 2


def test_enough_halo_is_exact_and_too_little_is_not() -> None:
    def blur(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 9, 1, 4, count_include_pad=False)

    x = torch.rand(2, 3, 50, 67, dtype=torch.float64)
    torch.testing.assert_close(in_tiles(blur, [x], (50, 67), tile=16, halo=4, multiple=1), blur(x), rtol=0, atol=1e-12)
    assert (in_tiles(blur, [x], (50, 67), tile=16, halo=3, multiple=1) - blur(x)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(150, 61), (149, 160)])
def test_network_in_tiles_equals_the_whole(size: tuple[int, int]) -> None:
    net = UNetGenerator(widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1,), head_width=8).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
        x = torch.rand(2, 3, *size, dtype=torch.float64) * 2 - 1
        whole = net(x)
        calls = []

        def counted(piece: Tensor) -> Tensor:
            calls.append(piece.shape)
            return net(piece)

        tiled = in_tiles(counted, [x], size, tile=32, halo=net.receptive_radius, multiple=net.multiple)
    assert len(calls) > 3
    assert (whole - x).abs().max() > 0.1
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-10)
