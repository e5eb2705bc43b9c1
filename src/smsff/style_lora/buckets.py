"""Aspect-ratio buckets: pictures of different shapes in batches of one shape, with as little cut off as possible.

Which bucket an iteration draws from, and which of its pictures comes at which position, is a pure function of
(seed, iteration, position), as everywhere in this package (`smsff.randomness`): the whole global batch of an iteration
has one shape, so processes, workers and resuming change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from smsff.data.crops import resize, to_signed
from smsff.errors import UserError
from smsff.randomness import keyed_generator, keyed_seed

Shape = tuple[int, int]
"""(height, width) in pixels."""


def bucket_shapes(*, resolution: int, stride: int, max_aspect: float) -> list[Shape]:
    """Shapes of about resolution^2 pixels whose sides are multiples of `stride`, ascending in height.

    For every width the largest height that keeps the area at or below resolution^2 (one stride at least), and the same
    the other way round, so that the set is symmetric. The longer side is at most `max_aspect` times the shorter.

    Raises:
        UserError: `resolution` is no multiple of `stride`.
    """
    if resolution % stride:
        raise UserError(f"data.resolution={resolution}: must be a multiple of data.stride={stride}")
    side = resolution // stride
    pairs = {(side, side)}
    for short in range(1, side + 1):
        long = side * side // short
        if long <= max_aspect * short:
            pairs |= {(short, long), (long, short)}
    return [(h * stride, w * stride) for h, w in sorted(pairs)]


def nearest_bucket(size: tuple[int, int], shapes: Sequence[Shape]) -> int:
    """Index of the shape whose aspect is nearest (in the logarithm) to a picture's; `size` is (width, height)."""
    aspect = math.log(size[0] / size[1])
    return min(range(len(shapes)), key=lambda i: abs(math.log(shapes[i][1] / shapes[i][0]) - aspect))


class Buckets:
    """The assignment of pictures to shapes, and the pictures of every batch.

    In a pass of ``count`` iterations a bucket of n pictures comes n times, in an order of that pass, and each time
    brings the next ``global_batch`` pictures of its own endless shuffle. So after a pass every picture has come exactly
    ``global_batch`` times, whatever the sizes of the buckets.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], shapes: Sequence[Shape], *, seed: int) -> None:
        """
        Args:
            sizes: (width, height) of every picture, as it is shown.
            shapes: The shapes to choose from (`bucket_shapes`).
        """
        chosen = [nearest_bucket(size, shapes) for size in sizes]
        used = sorted(set(chosen))
        self.shapes = [shapes[i] for i in used]
        self.members = [[k for k, c in enumerate(chosen) if c == i] for i in used]
        self.bucket_of = [used.index(c) for c in chosen]
        self.count, self.seed = len(sizes), seed

    def bucket(self, iteration: int) -> tuple[int, int]:
        """The bucket of an iteration, and how many iterations drew from it before."""
        turn, place = divmod(iteration, self.count)
        order = _bucket_order(self.seed, tuple(map(len, self.members)), turn)
        bucket = int(order[place])
        return bucket, turn * len(self.members[bucket]) + int((order[:place] == bucket).sum())

    def draw(self, iteration: int, position: int, global_batch: int) -> tuple[int, Shape]:
        """Index of the picture at one position of the global batch, and the shape of that batch."""
        bucket, before = self.bucket(iteration)
        members = self.members[bucket]
        cycle, place = divmod(before * global_batch + position, len(members))
        return members[int(_order(self.seed, bucket, len(members), cycle)[place])], self.shapes[bucket]

    def shape(self, index: int) -> Shape:
        """The shape that a picture was assigned to."""
        return self.shapes[self.bucket_of[index]]


@lru_cache(maxsize=4)
def _bucket_order(seed: int, sizes: tuple[int, ...], turn: int) -> Tensor:
    """Every bucket as often as it has pictures, shuffled, (sum of sizes,) long."""
    each = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return each[torch.randperm(len(each), generator=keyed_generator(seed, "bucket order", turn, 0))]


@lru_cache(maxsize=256)
def _order(seed: int, bucket: int, count: int, cycle: int) -> Tensor:
    """One shuffle of the pictures of a bucket, (count,) long."""
    return torch.randperm(count, generator=keyed_generator(seed, f"bucket {bucket}", cycle, 0))


def window(
    image: Tensor, shape: Shape, *, scale: tuple[float, float], flip: bool, generator: torch.Generator | None
) -> Tensor:
    """A window of an image in the aspect of `shape`, resized to it and perhaps mirrored.

    The window's side is a fraction, uniform in `scale`, of the largest window of that aspect in the image, and never
    smaller than `shape` itself where the image allows that. So (1, 1) shows whole pictures, and a small fraction such
    as (0.01, 0.01) their own pixels, for styles whose strokes have a size in pixels.

    Args:
        image: (3, H, W) uint8.
        shape: (height, width) of the result.
        scale: 0 < low <= high <= 1.
        flip: Mirror left and right in half of the cases.
        generator: Always gives four numbers; None takes the middle of the image at the middle of `scale`, unmirrored.

    Returns:
        (3, height, width) float32 in [-1, 1].
    """
    draws = [0.5, 0.5, 0.5, 1.0]
    if generator is not None:
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    fraction, down, right, mirror = draws
    height, width = image.shape[1:]
    largest = min(height / shape[0], width / shape[1])  # pixels of the image to one of the result
    zoom = max(largest * (scale[0] + (scale[1] - scale[0]) * fraction), min(1.0, largest))
    rows, columns = min(height, max(1, round(shape[0] * zoom))), min(width, max(1, round(shape[1] * zoom)))
    top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
    cut = resize(image[:, top : top + rows, left : left + columns], *shape)
    return to_signed(cut.flip(-1) if flip and mirror < 0.5 else cut)


def other_picture(seed: int, stream: str, iteration: int, position: int, count: int) -> int:
    """A uniform index below `count` for one sample, independent of everything else."""
    return keyed_seed(seed, stream, iteration, position) % count
