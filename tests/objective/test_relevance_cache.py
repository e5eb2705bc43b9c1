from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_module
from torch import Tensor

from smsff.errors import UserError
from smsff.module import Draws, StyleMatching
from smsff.objective.gradient import Noised
from smsff.objective.relevance import SemanticRelevance
from smsff.objective.relevance_cache import CachedRelevance, View, look_at
from smsff.objective.sms import StyleMatchingObjective
from smsff.objective.warmup import ReconstructionWarmup
from smsff.teacher.condition import Condition
from smsff.teacher.gaussian import GaussianTeacher

WHOLE = (0.0, 0.0, 1.0, 1.0, 0.0)


def ramp(height: int, width: int) -> Tensor:
    """10 y + x at pixel centres, (1, 1, height, width)."""
    return (10 * torch.arange(height)[:, None] + torch.arange(width)).float()[None, None]


def seen(window: tuple[float, ...], offset: tuple[int, int], size: tuple[int, int], cell: int) -> Tensor:
    shape = (-(-size[0] // cell), -(-size[1] // cell))
    return look_at(ramp(8, 12), torch.tensor(window), torch.tensor(offset), size, shape, cell)[0, 0]


def test_the_whole_picture_is_seen_as_it_is() -> None:
    torch.testing.assert_close(seen(WHOLE, (0, 0), (64, 96), 8), ramp(8, 12)[0, 0], atol=1e-4, rtol=0)


def test_a_window_shows_its_part_mirrored_and_moved() -> None:
    # rows 2 to 5 and columns 3 to 8 of the map, at the same scale
    window = (2 / 8, 3 / 12, 4 / 8, 6 / 12)
    part = ramp(8, 12)[0, 0, 2:6, 3:9]
    torch.testing.assert_close(seen((*window, 0.0), (0, 0), (32, 48), 8), part, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen((*window, 1.0), (0, 0), (32, 48), 8), part.flip(-1), atol=1e-4, rtol=0)
    # moved by one cell: the next row and column; what was moved in repeats the border of the crop
    moved = seen((*window, 0.0), (8, 8), (32, 48), 8)
    torch.testing.assert_close(moved[:-1, :-1], part[1:, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[-1, 0], part[-1, 1] + 5.0, atol=1e-4, rtol=0)
    # at twice the scale the ramp rises half as fast
    fine = seen((*window, 0.0), (0, 0), (64, 96), 8)
    torch.testing.assert_close(fine[1:, 2] - fine[:-1, 2], torch.full((7,), 5.0), atol=1e-4, rtol=0)


class PictureTeacher(GaussianTeacher):
    """A base whose two predictions differ by the noised picture itself; counts its samples."""

    def __init__(self) -> None:
        super().__init__()
        del self._modules["base"]
        self.asked: list[int] = []
        self.__dict__["base"] = self.predict

    def predict(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.asked.append(len(z_t))
        return z_t * cond.tokens.view(-1, 1, 1, 1)

    def encode_prompts(self, prompts: Any, *, style: bool = False) -> Condition:
        return Condition(torch.tensor([float(p != "") for p in prompts]).view(-1, 1, 1))


def pictures(index: int, max_side: int) -> Tensor:
    return torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(index)) * 2 - 1


def cached_module(relevance: CachedRelevance, picture: Callable[[int, int], Tensor] = pictures) -> StyleMatching:
    module = tiny_module(
        teacher=PictureTeacher(),
        relevance=relevance,
        picture=picture,
        grid_jitter=1,
        warmup=ReconstructionWarmup(steps=0),
        objective=StyleMatchingObjective(lambda_freq=0.0),
    )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def whole_batch(iteration: int = 0) -> dict[str, Any]:
    batch = tiny_batch(iteration)
    image = torch.stack([pictures(i, 0) for i in batch["index"].tolist()])
    return {**batch, "image": image, "window": torch.tensor([WHOLE] * len(image))}


def view_of(batch: dict[str, Any], module: StyleMatching) -> View:
    view = module.view(batch, torch.zeros(len(batch["image"]), 2, dtype=torch.long))
    assert view is not None
    return view


def test_of_a_whole_picture_at_the_middle_of_a_band_it_is_the_exact_map() -> None:
    batch = whole_batch()
    module = cached_module(CachedRelevance(band=100, normalize="minmax_mean"))
    cond, z = module.encode_prompts(batch["caption"]), batch["image"]
    m = module.cached_relevance(view_of(batch, module), torch.tensor([50, 120, 350, 399]), z, cond)
    t = torch.tensor([50, 150, 350, 350])
    noise = torch.cat(
        [Draws(0, int(one), [index], like=z).normal("relevance", (3, 8, 12)) for index, one in enumerate(t)]
    )
    at = Noised(z, z, noise, t, module.teacher.schedule)
    exact = SemanticRelevance(normalize="minmax_mean")(*module.edit_predictions(at, cond.edit, cond.null))
    torch.testing.assert_close(m, exact, atol=1e-4, rtol=1e-4)


def test_each_picture_and_band_is_computed_once_and_a_step_with_known_maps_asks_nothing() -> None:
    module = cached_module(CachedRelevance(band=1000))
    module.training_step(whole_batch(), 0)
    assert module.teacher.asked == [2] * 4
    module.training_step(whole_batch(1), 0)
    assert module.teacher.asked == [2] * 4
    other = {**whole_batch(2), "index": torch.tensor([0, 1, 7, 1])}
    module.training_step(other, 0)
    assert module.teacher.asked == [2] * 5


def test_what_is_forgotten_is_made_again_with_the_same_numbers() -> None:
    batch, times = whole_batch(), torch.tensor([50, 250, 450, 650])
    roomy, tight = cached_module(CachedRelevance()), cached_module(CachedRelevance())
    tight.relevance.cache_mb = 1e-6  # as if the maps were large: one fits
    results = []
    for module in (roomy, tight):
        cond = module.encode_prompts(batch["caption"])
        results += [module.cached_relevance(view_of(batch, module), times, batch["image"], cond) for _ in range(2)]
    assert sum(roomy.teacher.asked) == 8
    assert sum(tight.teacher.asked) == 16
    assert len(tight.relevance._maps) == 1
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_least_recently_used_map_goes_first() -> None:
    relevance, made = CachedRelevance(band=1000), []
    relevance.cache_mb = 2 * 8 * 12 * 4 / 1e6

    def ask(index: int) -> None:
        view = View([index], torch.tensor([WHOLE]), torch.zeros(1, 2), (8, 12))

        def predictions(sample: int, t: int) -> tuple[Tensor, Tensor]:
            made.append(index)
            return ramp(8, 12), torch.zeros(1, 1, 8, 12)

        relevance.of_views(view, [10], (8, 12), cell=1, largest=999, predictions=predictions)

    for index in (0, 1, 0, 2, 0, 1):
        ask(index)
    assert made == [0, 1, 2, 1]


def test_bands_share_their_middle_and_none_leaves_the_schedule() -> None:
    relevance = CachedRelevance(band=300)
    assert [relevance.middle(t, largest=999) for t in (0, 299, 300, 899, 999)] == [150, 150, 450, 750, 999]


def test_previews_are_exact() -> None:
    module = cached_module(CachedRelevance())
    x = pictures(0, 0)[None]
    exact = tiny_module(teacher=PictureTeacher(), relevance=SemanticRelevance()).preview_relevance(x, ["a"])
    assert torch.equal(module.preview_relevance(x, ["a"]), exact)


@pytest.mark.parametrize("name", ["band", "max_side", "cache_mb"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"relevance.{name}=0"):
        CachedRelevance(**{name: 0})
