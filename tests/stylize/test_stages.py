from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smsff.generator import UNetGenerator
from smsff.stylize import stages
from smsff.stylize.stages import in_stages
from smsff.stylize.stylizer import Stylizer


@pytest.fixture(scope="module")
def network() -> UNetGenerator:
    torch.manual_seed(0)
    net = UNetGenerator(widths=(6, 8, 10), encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1), head_width=5)
    for parameter in net.parameters():  # nothing zero, so that nothing cancels
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.double().eval()


@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83), (8, 200), (1, 1), (130, 17)])
@pytest.mark.parametrize("cells", [10, 16, 1024])
def test_stages_equal_the_whole_at_any_size(network: UNetGenerator, height: int, width: int, cells: int) -> None:
    x = torch.rand(2, 3, height, width, dtype=torch.float64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(in_stages(network, x, cells=cells), network(x), rtol=0, atol=1e-12)


def test_no_piece_is_larger_than_a_tile_with_its_reach(network: UNetGenerator, monkeypatch: Any) -> None:
    seen: list[int] = []
    forward = network.refine.forward

    def watched(x: Tensor) -> Tensor:
        seen.append(max(x.shape[-2:]))
        return forward(x)

    monkeypatch.setattr(network.refine, "forward", watched)
    with torch.inference_mode():
        in_stages(network, torch.rand(1, 3, 200, 168, dtype=torch.float64), cells=32)
    assert max(seen) <= 32 + 2 * 4


def test_a_stylizer_takes_stages_for_large_pictures(network: UNetGenerator, monkeypatch: Any) -> None:
    monkeypatch.setattr(stages, "CELLS", 16)
    taken: list[int] = []
    monkeypatch.setattr(
        "smsff.stylize.stylizer.in_stages", lambda net, x, **_: (taken.append(1), in_stages(net, x, cells=16))[1]
    )
    net = UNetGenerator(**network.config()).eval()  # type: ignore[arg-type]
    net.load_state_dict({name: value.float() for name, value in network.state_dict().items()})
    picture = torch.rand(1, 3, 70, 50)
    stylizer = Stylizer(net)
    small = stylizer(picture)
    assert not taken
    monkeypatch.setattr("smsff.stylize.stylizer.WHOLE", 64)
    torch.testing.assert_close(stylizer(picture), small, rtol=0, atol=1e-5)
    assert taken
