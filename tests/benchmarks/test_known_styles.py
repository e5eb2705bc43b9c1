"""The known-style benchmark: its plan, its arithmetic, and all of it on a tiny teacher."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from test_config import composed
from test_train import tiny  # noqa: F401

from smsff.config.check import check_config
from smsff.embedded import demo
from smsff.embedded.known_styles import STYLES, operator_of
from smsff.errors import UserError
from smsff.metrics.known_style import composite

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
known_styles = pytest.importorskip("known_styles", reason="matplotlib draws its plots", exc_type=ImportError)
figures = sys.modules["known_styles_figures"]
report = sys.modules["known_styles_report"]

PLAN = yaml.safe_load(known_styles.PLAN.read_text())
ROWS, _ = known_styles.read_plan(known_styles.PLAN, None, None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_of_the_plan_is_a_configuration(row: Any) -> None:
    single = ["data=single", "data.path=photo.png", "data.short_side=304", "data.multiple=16"] if row.per_image else []
    for candidate in row.candidates.values():
        plain = composed(*row.overrides, *candidate, *single, f"style={row.styles[0]}", "seed=2")
        check_config(plain)
        assert plain["style"]["name"] == row.styles[0]
        assert plain["generator"]["_target_"].endswith("Generator")
        assert (plain["data"]["_target_"].endswith("SingleImage")) is row.per_image


def test_the_plan_has_every_objective_and_every_row_of_the_ablation() -> None:
    overrides = {override for row in ROWS for override in row.overrides}
    assert {f"objective={name}" for name in ("sds", "dds", "pds", "vsd", "dmd")} <= overrides
    rows = {path.stem for path in (ROOT / "conf" / "experiment").glob("ablation_*.yaml")}
    assert {f"experiment={name}" for name in rows} <= overrides
    assert {len(row.candidates) for row in ROWS} == {3}
    assert len(PLAN["seeds"]) == 3


def test_the_truth_of_every_style_that_a_plan_may_name_can_be_computed() -> None:
    assert set(PLAN["styles"]) <= set(known_styles.KNOWN)
    for style in known_styles.KNOWN:
        assert operator_of(style) is STYLES[style.removeprefix("demo_")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": ["ghibli"]}, "ghibli is not known, only of"),
        ({"repeats": 3}, "unknown keys repeats"),
        ({"rows": {"a": {"override": []}}}, "unknown keys override"),
        ({"rows": {"a b": {}, "A, b": {}}}, "same letters"),
        ({"controls": {"steps": 3}}, "unknown keys steps"),
        ({"choose_on": ["ghibli"]}, "ghibli is not known, only of"),
        ({"styles": ["ink"]}, "ink is not known, only of demo_"),
    ],
)
def test_a_wrong_plan_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = {"styles": ["demo_comic"], "seeds": [0], "controls": {"ceiling_steps": 1}, "rows": {"a": {}}, **change}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(UserError, match=message):
        known_styles.read_plan(tmp_path / "plan.yaml", None, None)


def test_styles_to_choose_on_and_seeds_of_the_ceiling(tmp_path: Path) -> None:
    rows = {"a": {}, "b": {"styles": ["demo_comic"]}}
    plan = {"styles": ["demo_comic", "demo_ink"], "choose_on": ["demo_ink"], "seeds": [0, 1], "rows": rows}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    (a, b), ceiling = known_styles.read_plan(path, None, None)
    assert (a.styles, a.choose_on, b.choose_on) == (["demo_comic", "demo_ink"], ["demo_ink"], ["demo_comic"])
    assert ceiling is None
    path.write_text(yaml.safe_dump({**plan, "controls": {"ceiling_steps": 7}}))
    (a, _), ceiling = known_styles.read_plan(path, ["demo_watercolour"], [4])
    assert a.choose_on == ["demo_watercolour"]
    assert (ceiling.steps, ceiling.seeds) == (7, [4])
    path.write_text(yaml.safe_dump({**plan, "controls": {"ceiling_steps": 7, "ceiling_seeds": [1]}}))
    assert known_styles.read_plan(path, None, None)[1].seeds == [1]


def test_every_row_of_the_plan_of_presets_is_a_configuration() -> None:
    rows, ceiling = known_styles.read_plan(ROOT / "benchmarks" / "presets.yaml", None, None)
    assert ceiling is None
    for row in rows:
        check_config(composed(*row.overrides, "style=demo_ink", "seed=2"))


def test_the_truth_has_no_style_distance_and_the_photo_no_content_distance() -> None:
    photo = demo.load_photos("test")["chelsea"][..., :96, :128]
    truth = STYLES["cel"](photo)
    nothing, perfect = figures.measure(photo, truth, photo), figures.measure(truth, truth, photo)
    brighter = figures.measure((0.8 * photo + 0.1), truth, photo)
    assert nothing["content_photo"] == pytest.approx(0, abs=1e-2)
    assert brighter["content_photo"] == pytest.approx(0, abs=1e-2)
    assert brighter["content"] > 1
    assert perfect["style_tone_free"] == pytest.approx(0, abs=1e-2)
    assert perfect["content_photo"] > 0.5
    assert perfect["content_tone_free"] == pytest.approx(0, abs=1e-2)
    assert composite(perfect) == pytest.approx(1, abs=0.02)
    assert composite(nothing) > 2
    assert composite({"content_tone_free": 2.0, "style_tone_free": 3.0}) == 12.0


def made_up(
    row: str, style: str, seed: int | None, photo: str, content: float, style_distance: float
) -> dict[str, Any]:
    values = dict.fromkeys(report.COLUMNS, 1.0) | {"content_tone_free": content, "style_tone_free": style_distance}
    return {"row": row, "style": style, "seed": seed, "photo": photo, "figures": values, "picture": f"{row}.png"}


def test_means_and_spread() -> None:
    records = [
        made_up("A", style, seed, photo, content=seed + offset, style_distance=1.0)
        for style in ("cel", "sketch")
        for seed in (0, 2)
        for photo, offset in (("x", 0.0), ("y", 1.0))
    ]
    records += [made_up("B", "cel", 0, "x", 1.0, 1.0)]  # not on every style yet
    rows = report.summary(records, ["cel", "sketch"])
    assert list(rows) == ["A"]
    content, composite = rows["A"]["content_tone_free"], rows["A"]["composite"]
    assert (content["mean"], content["seeds"]) == (1.5, 2)
    assert content["spread"] == pytest.approx(2**0.5)  # 0.5 and 2.5
    assert composite["mean"] == pytest.approx(((1 + 0.5) * 2 + (1 + 2.5) * 2) / 2)
    assert report.summary(records, ["cel"])["B"]["composite"]["spread"] is None


def test_table_plot_and_sheet(tmp_path: Path) -> None:
    records = [made_up("SMS", "cel", seed, "x", 1.0 + seed, 2.0) for seed in (0, 1)]
    records += [made_up(report.NOTHING, "cel", None, "x", 1.0, 6.0), made_up(report.TRUTH, "cel", None, "x", 0.0, 0.0)]
    Image.new("RGB", (300, 100), "red").save(tmp_path / "SMS.png")
    choices = {"SMS": {"validation": {"plain": 5.0, "strong": 4.0, "weak": None}, "chosen": "strong"}}
    results = {"records": records, "choices": choices, "failed": ["SMS, cel, seed 2"]}
    printed = report.write_report(results, tmp_path, tmp_path / "report")
    text = (tmp_path / "report" / "table.md").read_text()
    rows = [line for line in text.split("**cel**")[1].splitlines() if line.startswith("| ")][1:4]
    assert [row.split(" |")[0] for row in rows] == ["| *true style*", "| SMS", "| *do nothing*"]  # best first
    assert "7.50 ± 2.12 | 1.50 ± 0.71 | 2.00 ± 0.00" in rows[1]
    assert "| SMS | **strong** | 4.00 |" in text
    assert "| SMS | weak | not finished |" in text
    assert "Failed runs: SMS, cel, seed 2" in text
    assert "distances.png" in printed
    assert Image.open(tmp_path / "report" / "distances.png").width > 500
    sheet = Image.open(tmp_path / "report" / "pictures.png")
    cell = (210 + report.CELL // 2, report.LABEL + report.CELL // 4)
    assert sheet.size == (210 + report.CELL + report.GAP, report.LABEL + 3 * (report.CELL + report.GAP))
    assert sheet.getpixel(cell) == (255, 0, 0)
    assert sheet.getpixel((cell[0], cell[1] + report.CELL + report.GAP)) == (255, 255, 255)  # no file, no picture


def test_the_legend_names_the_rows_of_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [made_up("SMS", style, 0, "x", 1.0, 2.0) for style in ("cel", "ink")]
    records.append(made_up("SMS, per image", "ink", 0, "x", 2.0, 1.0))
    drawn: list[Any] = []
    monkeypatch.setattr(report.plt, "close", drawn.append)
    report.plot(records, ["cel", "ink"], tmp_path / "distances.png")
    assert {text.get_text() for text in drawn[0].legends[0].get_texts()} == {"SMS", "SMS, per image"}
    monkeypatch.undo()
    report.plt.close(drawn[0])


@pytest.mark.slow
def test_the_whole_benchmark_on_a_tiny_teacher(
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trains, chooses, measures, reports; a second call trains and measures nothing; a failing row spoils no other."""
    load_photos = demo.load_photos
    monkeypatch.setattr(
        demo, "load_photos", lambda part: {name: x[..., 100:172, 100:196] for name, x in load_photos(part).items()}
    )
    network = ["+generator.widths=[8,8]", "+generator.encoder_blocks=[1,1]", "+generator.decoder_blocks=[1]"]
    train = [*network, "data.batch_size=2", "data.val_max_side=48", "warmup.steps=0"]
    plan = {
        "styles": ["demo_comic"],
        "seeds": [0, 1],
        "overrides": [o for o in tiny if not o.startswith("steps")] + ["steps=2"],
        "controls": {"ceiling_steps": 2, "ceiling_seeds": [1]},
        "rows": {
            "SMS": {"overrides": train},
            "SDS": {
                "overrides": [*train, "objective=sds"],
                "candidates": {
                    "strong": ["objective.style_guidance=7.5", "optimizer.generator.lr=1"],
                    "weak": ["objective.style_guidance=1", "optimizer.generator.lr=1e-6"],
                },
            },
            "wrong": {"overrides": [*train, "data.scale=[2,3]"], "seeds": [0]},
            "photo": {"overrides": ["experiment=per_image"], "per_image": True, "seeds": [0]},
        },
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "bench"
    arguments = ["--out", str(out), "--plan", str(tmp_path / "plan.yaml")]
    assert known_styles.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "FAILED: wrong, demo_comic, seed 0" in printed
    assert printed.count("trained (") == 2 + 2 + 1 + 2
    results = json.loads((out / "results.json").read_text())
    assert results["choices"]["SDS"]["chosen"] == "weak"  # the other one ruins the picture
    found = {(r["row"], r["seed"], r["photo"]) for r in results["records"]}
    photos = ("chelsea", "coffee")
    seeds: dict[str, list[int | None]] = {"SMS": [0, 1], "SDS": [0, 1], "photo": [0], report.CEILING: [1]}
    seeds |= {
        name: [None] for name in (report.NOTHING, report.TONE_CURVE, report.IMG2IMG, report.ONE_STEP, report.TRUTH)
    }
    assert found == {(row, seed, photo) for row, some in seeds.items() for seed in some for photo in photos}
    assert all((out / r["picture"]).is_file() for r in results["records"])
    value = {(r["row"], r["seed"]): r["figures"] for r in results["records"] if r["photo"] == "coffee"}
    # Hardly trained: the photo, but for what padding, latents and 8 bits cost.
    assert value["SDS", 0]["psnr"] == pytest.approx(value[report.NOTHING, None]["psnr"], abs=0.1)
    assert value["photo", 0]["ssim"] != value[report.NOTHING, None]["ssim"]
    assert Image.open(out / "runs/photo/demo_comic/seed0/coffee/pictures/coffee.png").size == (96, 72)
    assert not (out / "runs/sds-strong/demo_comic/seed0/figures_test.json").exists()  # its test photos stay untouched

    assert not list(out.glob("runs/sms/*/*/checkpoints"))  # measured: the network alone is kept
    assert (out / "runs/sms/demo_comic/seed1/export/model.safetensors").is_file()
    assert list(out.glob("runs/sds-strong/*/*/checkpoints"))
    for seed in (0, 1):
        known = json.loads((out / f"runs/sms/demo_comic/seed{seed}/metrics.json").read_text())["known_style"]
        assert known["table"][report.OURS]["coffee"]["psnr"] == value["SMS", seed]["psnr"]
        assert known["table"][report.CEILING]["coffee"]["psnr"] == value[report.CEILING, 1]["psnr"]
        assert known["bar"]["passed"] is False

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if "wrong" not in path.parts}
    assert known_styles.main([*arguments, "--rows", "SMS", "SDS", "photo", "--report", str(tmp_path / "again")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["records"] == results["records"]

    plan["rows"]["SMS"]["overrides"].append("seed=5")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert known_styles.main([*arguments, "--rows", "SMS"]) == 2
    assert "other overrides" in capsys.readouterr().err
