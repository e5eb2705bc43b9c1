"""Aspect-ratio buckets: shapes, assignment, and which picture comes when."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from smsff.data.crops import to_signed
from smsff.errors import UserError
from smsff.style_lora.buckets import Buckets, bucket_shapes, nearest_bucket, window

SIZES = [(640, 480)] * 5 + [(480, 640)] * 3 + [(500, 500)] * 4 + [(4000, 300)]


@pytest.mark.parametrize(("resolution", "stride"), [(512, 64), (1024, 64), (64, 8)])
def test_shapes_keep_stride_and_area(resolution: int, stride: int) -> None:
    shapes = bucket_shapes(resolution=resolution, stride=stride, max_aspect=2.0)
    assert (resolution, resolution) in shapes
    assert {(w, h) for h, w in shapes} == set(shapes)
    for h, w in shapes:
        assert h % stride == w % stride == 0
        assert max(h, w) <= 2 * min(h, w)
        # one stride less on the longer side is the most that rounding takes away
        assert resolution**2 - min(h, w) * stride < h * w <= resolution**2


def test_only_squares_without_aspect_and_bad_numbers_are_refused() -> None:
    assert bucket_shapes(resolution=128, stride=64, max_aspect=1.0) == [(128, 128)]
    for resolution, stride, aspect in ((100, 64, 2.0), (32, 64, 2.0)):
        with pytest.raises(UserError, match="data"):
            bucket_shapes(resolution=resolution, stride=stride, max_aspect=aspect)


def test_every_picture_is_in_the_bucket_nearest_to_its_aspect() -> None:
    shapes = bucket_shapes(resolution=512, stride=64, max_aspect=2.0)
    buckets = Buckets(SIZES, shapes, seed=0)
    assert sorted(i for members in buckets.members for i in members) == list(range(len(SIZES)))
    assert buckets.shape(8) == (512, 512)
    wide, tall, longest = buckets.shape(0), buckets.shape(5), buckets.shape(12)
    assert wide[0] < wide[1]
    assert tall == (wide[1], wide[0])
    assert longest[1] / longest[0] == max(w / h for h, w in shapes)
    assert nearest_bucket((1, 1), [(2, 4), (3, 3)]) == 1


def test_a_pass_brings_every_picture_equally_often_in_batches_of_one_shape() -> None:
    batch = 3
    buckets = Buckets(SIZES, bucket_shapes(resolution=64, stride=8, max_aspect=2.0), seed=1)
    count: Counter[int] = Counter()
    orders = []
    for turn in range(2):
        pictures = []
        for iteration in range(turn * len(SIZES), (turn + 1) * len(SIZES)):
            drawn = [buckets.draw(iteration, position, batch) for position in range(batch)]
            assert len({shape for _, shape in drawn}) == 1
            assert all(buckets.shape(index) == shape for index, shape in drawn)
            pictures += [index for index, _ in drawn]
        orders.append(pictures)
        count.update(pictures)
        assert set(count.values()) == {batch * (turn + 1)}
    assert orders[0] != orders[1]
    # in any order of asking, and another seed is another order
    again = Buckets(SIZES, bucket_shapes(resolution=64, stride=8, max_aspect=2.0), seed=1)
    other = Buckets(SIZES, bucket_shapes(resolution=64, stride=8, max_aspect=2.0), seed=2)
    backwards = [again.draw(i, p, batch)[0] for i in reversed(range(len(SIZES))) for p in reversed(range(batch))]
    assert backwards[::-1] == orders[0]
    assert [other.draw(i, p, batch)[0] for i in range(len(SIZES)) for p in range(batch)] != orders[0]


def test_one_bucket_is_the_usual_pass_through_all_pictures() -> None:
    buckets = Buckets([(50, 50)] * 6, [(64, 64)], seed=0)
    drawn = [buckets.draw(i, p, 2)[0] for i in range(3) for p in range(2)]
    assert sorted(drawn) == list(range(6))


def test_windows_have_their_shape_scale_and_middle() -> None:
    image = torch.arange(40, dtype=torch.uint8).expand(3, 30, 40).contiguous()  # brightness is the column
    whole = window(image, (30, 40), scale=(1.0, 1.0), flip=False, generator=None)
    assert torch.equal(whole, to_signed(image))
    own = window(image, (8, 12), scale=(0.01, 0.01), flip=False, generator=None)
    assert own.shape == (3, 8, 12)
    assert torch.equal(own, to_signed(image[:, 11:19, 14:26]))
    turned = set()
    for seed in range(8):
        crop = window(image, (6, 8), scale=(0.3, 0.5), flip=True, generator=torch.Generator().manual_seed(seed))
        turned.add(bool(crop[0, 0, 0] > crop[0, 0, -1]))
    assert turned == {True, False}
    enlarged = window(image[:, :5, :5], (16, 24), scale=(1.0, 1.0), flip=False, generator=None)
    assert enlarged.shape == (3, 16, 24)
    same = [
        window(image, (8, 8), scale=(0.3, 1.0), flip=True, generator=torch.Generator().manual_seed(5)) for _ in "ab"
    ]
    assert torch.equal(*same)
