"""Inputs around the way from a photo to its styled form."""

from __future__ import annotations

import numpy as np
import torch

from smsff.embedded.way import PHOTOS, add_filter, rms, way_inputs

SIZE = 400
PHOTO = torch.randn(SIZE, 2, 12, 16, generator=torch.Generator().manual_seed(0))
STYLED = PHOTO + 1 + 0.5 * torch.randn(SIZE, 2, 12, 16, generator=torch.Generator().manual_seed(1))


def test_inputs_are_photos_or_lie_on_the_way_and_around_it() -> None:
    x = way_inputs(PHOTO, STYLED, np.random.default_rng(0))
    assert torch.equal(x, way_inputs(PHOTO, STYLED, np.random.default_rng(0)))
    photos = (x == PHOTO).flatten(1).all(1)
    assert abs(photos.float().mean().item() - PHOTOS) < 0.07
    change = STYLED - PHOTO
    share = ((x - PHOTO) / change).flatten(1)[~photos]
    on_the_line = share.std(1) < 1e-3  # the same place everywhere
    assert on_the_line.sum() > 20
    assert share[on_the_line].min() > -1e-3
    assert 1.1 < share[on_the_line].max() < 1.31
    assert (share.std(1) > 0.05).sum() > 50


def test_no_sample_makes_no_input() -> None:
    assert way_inputs(PHOTO[:0], STYLED[:0], np.random.default_rng(0)).shape == (0, 2, 12, 16)


def test_the_filter_has_the_wanted_size_is_linear_and_each_sample_has_its_own() -> None:
    size = torch.linspace(0, 2, SIZE).view(-1, 1, 1, 1)
    added = add_filter(PHOTO, size, np.random.default_rng(3)) - PHOTO
    torch.testing.assert_close(rms(added), size, atol=1e-5, rtol=1e-4)
    twice = add_filter(2 * PHOTO, size, np.random.default_rng(3)) - 2 * PHOTO
    torch.testing.assert_close(twice, added, atol=1e-4, rtol=1e-3)  # the size is given, the form is that of x
    constant = add_filter(torch.ones(SIZE, 1, 5, 7), torch.ones(SIZE, 1, 1, 1), np.random.default_rng(4)) - 1
    without_mean = constant.abs().amax((1, 2, 3)) < 0.5
    assert 0.4 < without_mean.float().mean() < 0.6
