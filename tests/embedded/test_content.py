"""Synthetic content, and styled pictures made to look like photos again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smsff.data.filters import blur
from smsff.embedded.content import content, dead_leaves, photo_crop
from smsff.style_lora.degrade import close, degrade, erase_lines, patches, strokes


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (60 + 10 * i, 80, 3), dtype=np.uint8)) for i in range(2)]


def step_with_line(width: int) -> Tensor:
    """Light on the left, mid grey on the right, a black line of `width` columns between them, (2, 3, 20, 41)."""
    x = torch.full((2, 3, 20, 41), 0.9)
    x[..., 21:] = 0.5
    x[..., 21 - width // 2 : 21 - width // 2 + width] = 0.0
    return x


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_line_is_erased_and_its_two_sides_meet_in_its_middle(width: int) -> None:
    y = erase_lines(step_with_line(width), 7, 0.05)
    assert y.min() >= 0.5 - 1e-5  # nothing of the black is left
    torch.testing.assert_close(y[..., :17], torch.full_like(y[..., :17], 0.9))
    torch.testing.assert_close(y[..., 25:], torch.full_like(y[..., 25:], 0.5))
    middle = 21 - width // 2 + (width - 1) / 2
    crossing = (y[0, 0, 10] > 0.7).sum().item() - 0.5  # between the last light column and the first grey one
    assert abs(crossing - middle) <= 1


def test_a_line_wider_than_the_window_stays_and_a_plain_edge_is_not_touched() -> None:
    wide = step_with_line(9)
    torch.testing.assert_close(erase_lines(wide, 5, 0.05), wide)
    edge = step_with_line(0)
    torch.testing.assert_close(erase_lines(edge, 7, 0.05), edge)


def test_closing_gives_the_line_to_the_dark_side() -> None:
    y = close(step_with_line(3), 5)
    torch.testing.assert_close(y[0, 0, 10, 20:], torch.full((21,), 0.5))


def test_strokes_have_unit_variance_and_one_direction_each() -> None:
    field = strokes(3, 64, np.random.default_rng(0))
    assert field.shape == (3, 1, 64, 64)
    torch.testing.assert_close(field.std(dim=(1, 2, 3), correction=0), torch.ones(3), rtol=1e-4, atol=1e-4)
    gy, gx = torch.gradient(field[:, 0], dim=(1, 2))
    tensor = torch.stack([(gx * gx).mean((1, 2)), (gx * gy).mean((1, 2)), (gy * gy).mean((1, 2))], 1)
    spread = ((tensor[:, 0] - tensor[:, 2]) ** 2 + 4 * tensor[:, 1] ** 2).sqrt() / (tensor[:, 0] + tensor[:, 2])
    assert (spread > 0.3).all()  # 0 for a field without direction, 1 for parallel stripes


def test_patches_lie_in_the_unit_interval_and_vary() -> None:
    field = patches(4, (20, 33), np.random.default_rng(0))
    assert field.shape == (4, 1, 20, 33)
    assert field.min() >= 0
    assert field.max() <= 1
    assert field.std() > 0.1


def test_degrade_is_a_function_of_the_generator_and_keeps_shape_and_range() -> None:
    rng = np.random.default_rng(5)
    styled, other = (torch.from_numpy(rng.random((4, 3, 24, 37)).astype(np.float32)) for _ in range(2))
    first, again = (degrade(styled, other, np.random.default_rng(1)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first.shape == styled.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, degrade(styled, other, np.random.default_rng(2)))


def test_degrade_weakens_lines_and_adds_texture() -> None:
    x, rng = step_with_line(3).repeat(8, 1, 1, 1), np.random.default_rng(0)
    noise = torch.from_numpy(rng.random(x.shape).astype(np.float32))
    y = degrade(x, noise, rng)

    def hat(z: Tensor) -> Tensor:
        return (close(z.mean(1, keepdim=True), 7) - z.mean(1, keepdim=True))[..., 20:23].mean()

    assert hat(y) < 0.6 * hat(x)
    assert y[..., 2:12].std(dim=(1, 2, 3)).mean() > 0.005


def test_degrade_without_tones_leaves_the_mean_colour() -> None:
    flat = torch.full((16, 3, 32, 40), 0.5) + torch.linspace(-0.2, 0.2, 16).view(-1, 1, 1, 1)
    grey = torch.full_like(flat, 0.5)  # no texture
    kept, bent = (degrade(flat, grey, np.random.default_rng(4), tones=tones) for tones in (0.0, 1.0))
    torch.testing.assert_close(kept.mean((2, 3)), flat.mean((2, 3)), atol=0.01, rtol=0)
    assert (bent.mean((2, 3)) - flat.mean((2, 3))).abs().max() > 0.05


def test_degrade_takes_the_rims_of_lines_away_as_well() -> None:
    x = torch.full((8, 3, 32, 48), 0.35)
    x[..., 24:] = 0.6
    dark, grey = torch.zeros_like(x), torch.full_like(x, 0.5)
    dark[..., 22:26] = 0.9 * x[..., 22:26]
    styled = x - dark + blur(dark, 4.0)
    y = torch.stack([degrade(styled, grey, np.random.default_rng(seed), tones=0.0) for seed in range(12)]).mean(0)
    rim = (slice(None), slice(None), slice(8, 24), slice(15, 18))
    assert (y - x)[rim].mean().abs() < 0.9 * (styled - x)[rim].mean()


@pytest.mark.parametrize("draw", [photo_crop, dead_leaves])
def test_pictures_have_the_size_asked_for(draw, photos: list[Image.Image]) -> None:
    x = draw(photos, 48, np.random.default_rng(3))
    assert x.shape == (48, 48, 3)
    assert x.std() > 0.01


def test_content_lies_in_the_unit_interval_and_follows_the_generator(photos: list[Image.Image]) -> None:
    x, y = (content(photos, 40, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(x, y)
    assert x.min() >= 0
    assert x.max() <= 1
