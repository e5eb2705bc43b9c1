"""The known styles: what makes them usable as a truth, and what each is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smsff.embedded.known_styles import STYLES, bilateral, blur, charcoal, comic, ink, kuwahara, luma, pastel

MARGIN = 24
"""Farther than any operator looks."""


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Two smooth random pictures, (2, 3, 96, 120)."""
    noise = torch.rand(2, 3, 96, 120, generator=torch.Generator().manual_seed(0))
    return blur(noise, 2.0).sub(0.5).mul(4).add(0.5).clamp(0, 1)


@pytest.fixture(params=sorted(STYLES))
def style(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return STYLES[request.param]


def test_a_style_keeps_shape_and_range_and_changes_the_picture(style, pictures: Tensor) -> None:
    y = style(pictures)
    assert y.shape == pictures.shape
    assert y.min() >= 0
    assert y.max() <= 1
    assert (y - pictures).abs().mean() > 0.01


def test_each_picture_of_a_batch_is_stylized_by_itself(style, pictures: Tensor) -> None:
    torch.testing.assert_close(style(pictures), torch.cat([style(x[None]) for x in pictures]))


def test_a_shifted_picture_gives_the_shifted_style(style, pictures: Tensor) -> None:
    whole = style(pictures)[..., MARGIN + 5 : -MARGIN, MARGIN + 3 : -MARGIN]
    part = style(pictures[..., 5:, 3:])[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)


def test_a_mirrored_picture_gives_the_mirrored_style(style, pictures: Tensor) -> None:
    error = (style(pictures.flip(-1)) - style(pictures).flip(-1)).abs()
    assert (error < 1e-4).float().mean() > 0.99  # where two squares vary alike, rounding chooses


@pytest.mark.parametrize("smooth", [lambda x: kuwahara(x, 3), lambda x: bilateral(x, 4, 3.0, 0.1)])
def test_edge_preserving_means_leave_flat_colour_and_a_step_as_they_are(smooth) -> None:
    x = torch.full((1, 3, 40, 52), 0.2)
    torch.testing.assert_close(smooth(x), x)
    x[..., 26:] = 0.9
    torch.testing.assert_close(smooth(x), x, atol=1e-3, rtol=0)


def test_ink_draws_a_pen_line_on_the_dark_side_of_a_step_over_paler_colour() -> None:
    x = torch.full((1, 3, 64, 96), 0.3)
    x[..., 48:] = 0.6
    y = ink(x)
    assert (y[..., 45:47] < 0.05).all()
    torch.testing.assert_close(y[..., :24], 1 - 0.8 * (1 - x[..., :24]), atol=1e-3, rtol=0)
    assert (y[..., 50:] > 0.6).all()


def test_comic_outlines_both_sides_of_a_step_and_keeps_flat_colour() -> None:
    x = torch.full((1, 3, 64, 96), 0.3)
    x[..., 48:] = 0.6
    y = comic(x)
    assert (y[..., 47:49] < 0.05).all()
    torch.testing.assert_close(y[..., :24], x[..., :24], atol=1e-3, rtol=0)
    torch.testing.assert_close(y[..., -24:], x[..., -24:], atol=1e-3, rtol=0)


def test_pastel_draws_white_lines_and_charcoal_takes_the_colour_away() -> None:
    x = torch.full((1, 3, 64, 96), 0.2)
    x[:, 0, :, 48:] = 0.9
    assert (pastel(x)[..., 48] > 0.65).all()
    smudged = charcoal(x)
    assert (smudged.amax(1) - smudged.amin(1)).max() < 0.06


def test_luma_of_grey_is_grey() -> None:
    x = torch.rand(2, 1, 5, 7).expand(-1, 3, -1, -1)
    torch.testing.assert_close(luma(x), x[:, :1])
