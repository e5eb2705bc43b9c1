"""Targets that are learned again: what comes out is what went in, and the store goes on where it was."""

from __future__ import annotations

import pytest
import torch

from smsff.errors import UserError
from smsff.objective.replay import Replay


def pictures(count: int, *, first: int = 0, height: int = 4, width: int = 6) -> torch.Tensor:
    """Pictures that tell their number: constant, number / 64."""
    return (torch.arange(first, first + count) / 64).view(-1, 1, 1, 1).expand(count, 3, height, width).clone()


def offsets(count: int) -> torch.Tensor:
    return torch.arange(2 * count).view(count, 2)


def numbers(replay: Replay, count: int) -> list[int]:
    """The numbers of the stored sources, in their places."""
    x, *_ = replay.draw((torch.arange(count) + 0.5) / count)
    return (x[:, 0, 0, 0] * 64).round().long().tolist()


def test_what_was_put_is_drawn_with_its_target_and_offset() -> None:
    replay = Replay(every=3, size=8)
    x = pictures(5)
    replay.put(x, -x, offsets(5))
    drawn, target, weight, offset = replay.draw(torch.tensor([0.0, 0.3, 0.99]))  # 0, 1 and 4 of 5
    assert torch.equal(drawn, x[[0, 1, 4]])
    assert torch.equal(target, -x[[0, 1, 4]])
    assert weight.tolist() == [1, 1, 1]
    assert torch.equal(offset, offsets(5)[[0, 1, 4]])


def test_the_newest_take_the_place_of_the_oldest() -> None:
    replay = Replay(every=3, size=8)
    for start in (0, 3, 6):
        replay.put(pictures(3, first=start), pictures(3), offsets(3))
    assert numbers(replay, 8) == [8, 1, 2, 3, 4, 5, 6, 7]


def test_scores_are_asked_every_so_many_steps_and_whenever_nothing_is_kept() -> None:
    replay = Replay(every=3, size=8)
    assert replay.asks(1)
    replay.put(pictures(2), pictures(2), offsets(2))
    assert [replay.asks(step) for step in range(7)] == [True, False, False, True, False, False, True]
    assert all(Replay().asks(step) for step in range(5))


def test_nothing_is_kept_where_every_step_asks() -> None:
    replay = Replay(every=1)
    replay.put(pictures(2), pictures(2), offsets(2))
    assert replay.state_dict() == {"count": 0}


def test_a_target_that_is_not_finite_has_no_weight() -> None:
    replay = Replay(every=2, size=8)
    target = pictures(4)
    target[1, 0, 0, 0], target[2, 1, 2, 3], target[3, 0, 0, 0] = torch.nan, torch.inf, 1e30  # the last in 16 bits
    replay.put(pictures(4), target, offsets(4))
    _, kept, weight, _ = replay.draw(torch.tensor([0.1, 0.3, 0.6, 0.9]))
    assert weight.tolist() == [1, 0, 0, 0]
    assert torch.isfinite(kept).all()


@pytest.mark.parametrize("filled", [3, 8, 11])
def test_state_goes_on_where_it_was(filled: int) -> None:
    replay, other = Replay(every=2, size=8), Replay(every=2, size=8)
    for first in range(filled):
        replay.put(pictures(1, first=first), pictures(1), offsets(1))
    other.load_state_dict(replay.state_dict(), torch.device("cpu"))
    for one in (replay, other):
        one.put(pictures(2, first=40), pictures(2), offsets(2))
    assert numbers(other, 8) == numbers(replay, 8)
    assert other.count == replay.count == filled + 2


def test_with_another_size_it_begins_anew() -> None:
    replay = Replay(every=2, size=8)
    replay.put(pictures(8), pictures(8), offsets(8))
    other = Replay(every=2, size=4)
    other.load_state_dict(replay.state_dict(), torch.device("cpu"))
    assert other.count == 0
    assert other.asks(1)


def test_bad_use_is_named() -> None:
    for name in ("every", "size", "draws", "hold"):
        with pytest.raises(UserError, match=rf"replay\.{name}=0 must be at least 1"):
            Replay(**{name: 0})
    with pytest.raises(UserError, match=r"replay\.relaxation=0\.0 must be"):
        Replay(relaxation=0.0)
    replay = Replay(every=2, size=2)
    with pytest.raises(UserError, match=r"replay\.size=2 must be at least the 3 pictures of one step"):
        replay.put(pictures(3), pictures(3), offsets(3))
    replay.put(pictures(1), pictures(1), offsets(1))
    with pytest.raises(UserError, match=r"replay\.every=2: pictures of \(4, 7\) and \(4, 6\)"):
        replay.put(pictures(1, width=7), pictures(1, width=7), offsets(1))


def test_a_generation_needs_targets_that_are_learned_again() -> None:
    assert Replay(every=2, hold=5).holds
    assert not Replay(every=1, hold=5).holds
    assert not Replay(every=2, hold=1).holds
