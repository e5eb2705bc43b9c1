from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_folders import SIZE, benchmark, evaluation, training_run

from smsff.errors import UserError
from smsff.report.collect import collect, read_curves, short_names
from smsff.report.content import spread


def test_a_training_run_shows_its_settings_curves_table_and_pictures(tmp_path: Path) -> None:
    (entry,) = collect([training_run(tmp_path / "run")])
    assert entry.name == "run"
    assert dict(entry.facts)["style"] == "cel"
    assert dict(entry.facts)["objective"] == "Objective"
    assert dict(entry.facts)["status"] == "finished"
    assert dict(entry.facts)["bar"] == "reached"
    assert entry.known_style is not None
    assert set(entry.curves) == {"train/loss", "train/matching", "train/lr_generator", "val/change"}
    assert [slide.name for slide in entry.slides] == ["cat", "cup"]
    assert entry.slides[0].before.box == (0, 26, SIZE[0], SIZE[1] + 26)
    assert entry.slides[0].after.box == (SIZE[0] + 4, 26, 2 * SIZE[0] + 4, SIZE[1] + 26)
    assert len(entry.pictures) == 2 + 4


def test_a_resumed_run_has_one_curve(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", steps=100)
    later = run / "csv" / "version_1"
    later.mkdir()
    (later / "metrics.csv").write_text("step,train/loss\n89,7.5\n109,0.5\nbad,1\n119,nan\n")
    curve = dict(read_curves(run)["train/loss"])
    assert curve[89] == 7.5  # the later part counts
    assert curve[109] == 0.5
    assert 119 not in curve
    assert list(curve) == sorted(curve)


@pytest.mark.parametrize(
    "damage", ["config.yaml", "metrics.json", "csv/version_0/metrics.csv", "pictures/cat_stylized.png"]
)
def test_damaged_files_of_a_run_cost_their_part_only(tmp_path: Path, damage: str) -> None:
    run = training_run(tmp_path / "run")
    (run / damage).write_bytes(b"\xff\x00[{: not this")
    (entry,) = collect([run])
    assert entry.curves or "csv" in damage
    assert [slide.name for slide in entry.slides] == (["cup"] if "cat" in damage else ["cat", "cup"])


def test_an_evaluation_shows_its_pairs_evenly_and_the_worst(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "eval", count=30)
    (folder / "result_4.png").unlink()
    (entry,) = collect([folder])
    names = [slide.name for slide in entry.slides]
    assert names == ["0.png", "8.png", "12.png", "17.png", "21.png", "25.png", "29.png", "28.png"]
    assert entry.slides[-1].caption == "LPIPS 0.580, SSIM 0.500, highest LPIPS"
    assert ("SHA-256 of the style set", "ab") in entry.facts
    assert [heading for heading, _ in entry.messages] == ["Notes", "Not measured", "Left out"]


def test_a_comparison_is_averaged_over_seeds_and_styles(tmp_path: Path) -> None:
    (entry,) = collect([benchmark(tmp_path / "bench", rows={"SMS": 1.0, "do nothing": 0.5, "SDS": 2.0})])
    mean, cel, sketch = entry.tables
    assert mean.title == "Mean of 2 styles"
    assert (cel.title, sketch.title) == ("cel", "sketch")
    assert [heading.title for heading, _ in mean.rows] == ["do nothing", "SMS", "SDS"]  # by the composite
    row = dict(zip((column.title for column in mean.columns), mean.rows[1][1], strict=True))
    assert row["Composite"].value == pytest.approx(3 * 18.1)
    assert row["PSNR to the truth"].text == "1.10"
    assert row["PSNR to the truth"].note == "± 0.10, 3 seeds (7.125)"
    assert [row[title].text for title in ("seconds a picture", "peak memory, GB", "weights")] == [
        "2.00",
        "4.00",
        "there",
    ]
    assert (mean.rows[2][0].note, mean.rows[2][1][-1].text) == ("two files", "missing")
    assert mean.marked == {1, 2}
    psnr = [column.title for column in mean.columns].index("PSNR to the truth")
    assert (2, psnr) in mean.best  # among the methods; higher is better
    assert [gallery.title for gallery in entry.galleries] == ["cel, cat", "sketch, cat"]
    assert [name for name, _ in entry.galleries[0].pictures] == ["photo", "SMS", "do nothing", "SDS"]
    assert ("Missing", ["SDS: two files"]) in entry.messages
    assert "SMS: a 4.00, b –; a was taken" in entry.messages[1][1]


def test_a_sweep_is_all_of_its_runs_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2):
        training_run(tmp_path / "sweep" / str(number))
    shutil.rmtree(tmp_path / "sweep" / "10" / "csv")
    entries = collect([tmp_path / "sweep"])
    assert [entry.name for entry in entries] == ["2", "10"]


def test_runs_of_one_name_are_told_apart_and_the_same_folder_is_shown_once(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert short_names(folders) == ["a/run", "b/run"]
    assert short_names(folders[:1]) == ["run"]
    run = training_run(folders[0])
    assert len(collect([run, run])) == 1


def test_folders_without_runs_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: not a folder"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no run in it; a run has config.yaml"):
        collect([tmp_path / "empty"])
    for file, content in (("evaluation.json", {"pairs": {"a": 3}}), ("results.json", {"records": [{}]})):
        folder = tmp_path / file
        folder.mkdir()
        (folder / file).write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"not written by smsff"):
            collect([folder])


def test_spread_takes_both_ends() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    assert spread(5, 1) == [4]
