"""Pictures in memory as batches: the same form as those of a folder, and a pure function of seed and iteration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from styled import pictures as folder_pictures
from styled import write_pictures

from smsff.embedded.style_bank import StyleBank, crops
from smsff.style_lora.data import Degraded


def darker(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return x / 2


def bank(count: int = 12, **changes: Any) -> StyleBank:
    generator = torch.Generator().manual_seed(0)
    styled = torch.randint(128, (count, 3, 40, 48), dtype=torch.uint8, generator=generator)
    photo = torch.randint(127, (7, 3, 40, 48), dtype=torch.uint8, generator=generator)
    options: dict[str, Any] = {"resolution": 24, "margin": 4, "batch_size": 5, "steps": 3, "seed": 0, "held_out": 4}
    return StyleBank(styled, **{"pairs": (photo, photo + 128), "paired": 0.5, "restyle": darker, **options, **changes})


def test_crops_are_windows_of_their_pictures() -> None:
    pictures = torch.arange(3 * 2 * 9 * 11).view(3, 2, 9, 11)
    index = np.array([2, 0, 2, 1])
    found = crops(pictures, index, 5, np.random.default_rng(0))
    assert found.shape == (4, 2, 5, 5)
    for i, crop in zip(index, found, strict=True):
        windows = pictures[i].unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == crop).flatten(1).all(1).sum() == 1


def test_a_batch_has_the_form_of_a_folders(tmp_path) -> None:
    folder = folder_pictures(write_pictures(tmp_path), degraded=Degraded(share=0.5), batch_size=5)
    theirs: dict[str, Any] = next(iter(folder.train_dataloader()))
    ours = bank().batch(1)
    for name, value in theirs.items():
        if name not in ("draw", "unreadable"):
            assert type(ours[name]) is type(value), name
            if isinstance(value, torch.Tensor):
                assert (ours[name].dtype, ours[name].ndim) == (value.dtype, value.ndim), name
    assert ours["image"].shape == (5, 3, 32, 32)
    assert ours["iteration"].tolist() == [1] * 5
    assert ours["position"].tolist() == [0, 1, 2, 3, 4]
    assert set(ours["caption"]) <= set(bank().captions())


def test_batches_follow_seed_and_iteration() -> None:
    first, again, other = bank().batch(2), bank().batch(2), bank(seed=1).batch(2)
    assert torch.equal(first["input"], again["input"])
    assert not torch.equal(first["image"][-1], bank().batch(1)["image"][-1])
    assert not torch.equal(first["image"][-1], other["image"][-1])


def test_pairs_go_from_around_the_way_to_the_loose_form_and_own_pictures_from_beside_themselves() -> None:
    moves: dict[str, list[float]] = {"pair": [], "own": []}
    for iteration in range(30):
        batch = bank().batch(iteration)
        for image, given, index in zip(batch["image"], batch["input"], batch["index"], strict=True):
            kind = "pair" if image.mean() > 0 else "own"  # loose forms are bright here, the style's pictures dark
            assert int(index) < (7 if kind == "pair" else 8)
            moves[kind].append((image - given).abs().mean().item())
        moved = (batch["image"] - batch["input"]).abs().amax((1, 2, 3)) > 1e-6
        assert not (moved & ~batch["degraded"]).any()
    pair, own = (np.array(moves[kind]) for kind in ("pair", "own"))
    assert 0.35 < len(pair) / (5 * 30) < 0.65
    assert 0.2 < np.mean(np.abs(pair - 128 / 127.5) < 1e-4) < 0.5  # from the photo as it is
    assert np.mean(pair < 0.3) > 0.1
    assert 0.25 < np.mean(own == 0) < 0.55
    assert not any((one["image"] > 0).any() for one in [bank(paired=0.0).batch(0)])


def test_what_is_held_out_is_never_trained_on() -> None:
    data = bank(steps=30)
    seen = torch.cat([batch["index"][batch["image"].mean((1, 2, 3)) < 0] for batch in data.train_dataloader()])
    assert set(seen.tolist()) == set(range(8))
    measured = list(data.val_dataloader())
    assert [batch["held_out"] for batch in measured] == [0, 1, 2, 3]
    assert torch.equal(((measured[1]["image"][0] + 1) * 127.5).round().byte(), data.styled[9, :, 4:36, 8:40])
    assert bank(4).count == 2  # at most half
