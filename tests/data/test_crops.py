from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smsff.data.crops import random_window, resize, shrink_to, to_signed
from smsff.randomness import keyed_generator


def ramp(height: int, width: int) -> Tensor:
    """Red tells the row, green the column, blue is constant."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns, torch.full((height, width), 100)]).to(torch.uint8)


def crops(image: Tensor, count: int = 200, **options: object) -> list[Tensor]:
    wanted: dict[str, Any] = {"size": 16, "scale": (0.5, 1.0), "flip": False, **options}
    generators = [keyed_generator(0, "crop", i, 0) for i in range(count)]
    return [random_window(image, **wanted, generator=g).cut(image, wanted["size"]) for g in generators]


def test_range_and_shape() -> None:
    assert torch.equal(to_signed(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))
    crop = crops(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), count=1)[0]
    assert crop.shape == (3, 16, 16)
    assert crop.dtype == torch.float32
    assert crop.abs().max() <= 1


def test_windows_cover_the_whole_image_with_the_asked_sides() -> None:
    height, width = 100, 150
    values = torch.stack(crops(ramp(height, width), count=400, scale=(0.3, 0.6), size=20)).add(1).mul(127.5)
    rows, columns = values[:, 0], values[:, 1]
    side = (rows.amax((1, 2)) - rows.amin((1, 2))) * 20 / 19
    assert 28 < side.min() < 33
    assert 57 < side.max() < 62
    assert rows.min() < 3
    assert rows.max() > height - 4
    assert columns.min() < 3
    assert columns.max() > width - 4


def test_the_largest_square_only() -> None:
    for crop in crops(ramp(60, 200), count=20, scale=(1.0, 1.0)):
        rows = (crop[0] + 1) * 127.5
        assert rows.min() < 4
        assert rows.max() > 55


def test_images_are_enlarged_only_if_smaller_than_the_crop() -> None:
    noise = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for crop in crops(noise, count=20, size=20, scale=(0.2, 0.2)):
        exact = [to_signed(noise[:, :, left : left + 20]) for left in range(11)]
        assert any(torch.equal(crop, window) for window in exact)
    for shape in ((8, 9), (1, 1), (1, 40)):
        small = torch.full((3, *shape), 7, dtype=torch.uint8)
        assert torch.equal(crops(small, count=1)[0], to_signed(torch.full((3, 16, 16), 7, dtype=torch.uint8)))


def test_pixels_are_enlarged_as_far_as_allowed() -> None:
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    draws = [torch.Generator().manual_seed(i) for i in range(200)]
    sides = [
        random_window(image, size=96, scale=(0.1, 0.5), flip=False, generator=one, enlarge=1.5).side for one in draws
    ]
    assert min(sides) == 64
    assert 140 < max(sides) <= 150


def test_flip_mirrors_half_and_changes_nothing_else() -> None:
    image = ramp(40, 60)
    plain, mirrored = crops(image, flip=False), crops(image, flip=True)
    flipped = [not torch.equal(a, b) for a, b in zip(plain, mirrored, strict=True)]
    assert 70 < sum(flipped) < 130
    assert all(torch.equal(a, b.flip(-1)) for a, b, f in zip(plain, mirrored, flipped, strict=True) if f)


@pytest.mark.parametrize("size", [(7, 11), (90, 33)])
def test_resize_equals_pil(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
    assert (resize(image, *size).int() - expected.int()).abs().max() <= 1


def test_shrink_to() -> None:
    image = ramp(40, 100)
    assert shrink_to(image, 50).shape == (3, 20, 50)
    assert torch.equal(shrink_to(image, 100), image)
    assert shrink_to(ramp(1, 200), 20).shape == (3, 1, 20)
