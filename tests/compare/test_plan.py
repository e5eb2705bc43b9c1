"""Plans: what is refused, and the plans of the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_config import composed

from smsff.compare.plan import jobs, read_plan
from smsff.config.check import check_config
from smsff.errors import UserError

ROOT = Path(__file__).parents[2]
PAPER = sorted((ROOT / "benchmarks").glob("paper_*.yaml"))
PLAN: dict[str, Any] = {"content": "photos", "styles": ["ghibli"], "rows": {"a": {"nothing": True}}}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 3}, "repeats"),
        ({"seeds": ["many"]}, "seeds"),
        ({"rows": {}}, "rows: no value"),
        ({"rows": {"a": {"override": []}}}, "override"),
        ({"rows": {"a": {}}}, "rows.a: give one of"),
        ({"rows": {"a": {"nothing": True, "train": []}}}, "not 2"),
        ({"rows": {"a": {"baseline": []}}}, "rows.a.baseline"),
        ({"rows": {"a b": {"train": []}, "A, b": {"train": []}}}, "same letters"),
        (
            {"rows": {"a": {"train": [], "candidates": {"x y": [], "x, y": []}}}, "val": "v", "truth": "t"},
            "same letters",
        ),
        ({"rows": {"a": {"train": [], "candidates": {"x": [], "y": []}}}}, "needs val and truth"),
        ({"rows": {"a": {"model": "m", "candidates": {"x": ["a=b"]}}}}, "model has none"),
        ({"rows": {"a": {"nothing": True, "paper": {"beauty": 1.0}}}}, "no figure beauty"),
    ],
)
def test_a_wrong_plan_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_plan(write(tmp_path, **changes))


def test_a_plan_without_photos_is_refused_and_changes_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in PLAN.items() if key != "content"}))
    with pytest.raises(UserError, match="content: no value given"):
        read_plan(path)
    plan = read_plan(path, ["content=mine", "seeds=[1,2]", "rows.b.train=[steps=3]", "rows.b.seeds=[5]"])
    assert (plan.content, plan.rows["b"].train) == ("mine", ["steps=3"])
    assert [job.seed for job in jobs(plan, tmp_path, "a", "")] == [1, 2]
    assert [job.seed for job in jobs(plan, tmp_path, "b", "")] == [5]
    with pytest.raises(UserError, match=r"cannot be read"):
        read_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_artfid_of_the_paper_is_that_of_its_lpips_and_fid(path: Path) -> None:
    """(1 + LPIPS) (1 + FID), up to what three decimals of each can change."""
    for row in read_plan(path, ["content=photos"]).rows.values():
        if row.paper and "art_fid" in row.paper:
            lpips, fid, artfid = (row.paper[key] for key in ("lpips", "art_fid", "artfid"))
            rounding = 5e-4 * ((1 + fid) + (1 + lpips) + 1)
            assert (1 + lpips) * (1 + fid) == pytest.approx(artfid, abs=rounding)


def test_the_three_plans_have_the_rows_of_the_paper() -> None:
    rows = {path.stem: [n for n, row in read_plan(path, ["content=p"]).rows.items() if row.paper] for path in PAPER}
    assert rows["paper_main"] == ["FreeStyle", "StyleID", "InstantStyle+", "Style-LoRA", "DDS", "SMS"]
    assert len(rows["paper_ablation"]) == 6
    assert rows["paper_feed_forward"] == ["Scenimefy", "DDS", "PDS", "SMS"]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_row_that_train_py_makes_is_a_configuration(path: Path) -> None:
    plan = read_plan(path, ["content=photos"])
    for row in plan.rows.values():
        own = [*(row.per_image or []), "data.path=photo.png"] if row.per_image else row.train
        if own is not None:
            common = [word for word in plan.overrides if row.train is not None]
            check_config(composed(*common, *own, "style=ghibli", "seed=0"))
