"""Relevance, computed once for each picture and band of t instead of in every step (ours).

R of a picture hardly changes from one noise or neighbouring t to the next, while it costs two passes of the base each
time. Here the map of the *whole* picture is computed at the middle of a band of t, with noise that belongs to picture
and band, and every crop takes its part of it. A map is a pure function of (seed, picture, band): what the cache holds
or has forgotten changes the time a step takes but no number, with several processes and in a run that goes on too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.errors import UserError
from smsff.objective.relevance import RelevanceNormalize, RelevanceReduce, SemanticRelevance, relevance_map


@dataclass(frozen=True)
class View:
    """Which part of which pictures a batch of B crops shows; all of it in the main memory.

    Attributes:
        pictures: Number of the picture of each sample.
        windows: (B, 5): top, left, height and width of the window as fractions of the picture; 1 if mirrored.
        offset: (B, 2), how far in pixels each crop was moved up and left before it was encoded.
        size: Height and width of the crops in pixels.
    """

    pictures: Sequence[int]
    windows: Tensor
    offset: Tensor
    size: tuple[int, int]


def look_at(
    raw: Tensor, window: Tensor, offset: Tensor, size: tuple[int, int], shape: tuple[int, int], cell: int
) -> Tensor:
    """The part of a picture's map that a crop shows.

    Args:
        raw: Map of the whole picture, (1, 1, H, W).
        window, offset, size: Of one sample of a `View`, the first two (5,) and (2,).
        shape: Height and width of the crop's latent.
        cell: Pixels of the crop to one of its latent, each way.

    Returns:
        (1, 1, *shape), linearly interpolated; outside of the picture its border is repeated.
    """
    top, left, height, width, mirrored = window.tolist()
    axes = []
    for count, side, moved, flipped in zip(shape, size, offset.tolist(), (False, bool(mirrored)), strict=True):
        place = ((torch.arange(count) + 0.5) * cell + moved).clamp(max=side) / side
        axes.append(1 - place if flipped else place)
    rows, columns = 2 * (top + height * axes[0]) - 1, 2 * (left + width * axes[1]) - 1
    grid = torch.stack(torch.broadcast_tensors(columns[None, :], rows[:, None]), dim=-1)[None]
    if raw.is_cuda:
        grid = grid.pin_memory()
    grid = grid.to(raw.device, raw.dtype, non_blocking=True)
    return F.grid_sample(raw, grid, mode="bilinear", padding_mode="border", align_corners=False)


class CachedRelevance(SemanticRelevance):
    """`SemanticRelevance` whose maps are kept; called with predictions, it is that.

    Args:
        reduce, normalize: As in `SemanticRelevance`.
        band: Timesteps that share a map.
        max_side: Longest side in pixels of the pictures that the maps are made of.
        cache_mb: Memory for maps; of what does not fit, the map that was not used for the longest time is made again.

    Raises:
        UserError: unknown option, a number below 1.
    """

    def __init__(
        self,
        *,
        reduce: RelevanceReduce = "mean_abs",
        normalize: RelevanceNormalize = "minmax",
        band: int = 100,
        max_side: int = 512,
        cache_mb: float = 256,
    ) -> None:
        super().__init__(reduce=reduce, normalize=normalize)
        for name, value in (("band", band), ("max_side", max_side), ("cache_mb", cache_mb)):
            if value < 1:
                raise UserError(f"relevance.{name}={value} must be at least 1")
        self.band, self.max_side, self.cache_mb = band, max_side, cache_mb
        self._maps: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._bytes = 0

    def middle(self, t: int, *, largest: int) -> int:
        """The t at which the map of a band is made; the same for all t in it."""
        return min(t // self.band * self.band + self.band // 2, largest)

    @torch.no_grad()
    def of_views(
        self,
        view: View,
        times: Sequence[int],
        shape: tuple[int, int],
        *,
        cell: int,
        largest: int,
        predictions: Callable[[int, int], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """The maps of a batch of crops, (B, 1, *shape), normalised crop by crop.

        Args:
            times: t of each sample.
            shape, cell: As in `look_at`.
            largest: The largest t there is.
            predictions: eps under the edit prompt and under the empty one, (1, C, H, W) each, of the sample of this
                number in the batch, the whole picture at this t; called for maps that are not there.
        """
        parts = []
        for sample, (picture, t) in enumerate(zip(view.pictures, times, strict=True)):
            middle = self.middle(t, largest=largest)
            raw = self._maps.get((picture, middle))
            if raw is None:
                raw = relevance_map(*predictions(sample, middle), self.reduce)
                self._keep((picture, middle), raw)
            self._maps.move_to_end((picture, middle))
            parts.append(look_at(raw, view.windows[sample], view.offset[sample], view.size, shape, cell))
        return self.normalized(torch.cat(parts))

    def _keep(self, key: tuple[int, int], raw: Tensor) -> None:
        self._maps[key] = raw
        self._bytes += raw.nbytes
        while self._bytes > self.cache_mb * 1e6 and len(self._maps) > 1:
            self._bytes -= self._maps.popitem(last=False)[1].nbytes
