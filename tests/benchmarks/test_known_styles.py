"""The known-style benchmark: its plans, and all of it on a tiny teacher."""

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

from smsff.compare.plan import read_plan
from smsff.config.check import check_config
from smsff.embedded import demo
from smsff.embedded.known_styles import STYLES, operator_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import known_styles  # noqa: E402

PLANS = [ROOT / "benchmarks" / name for name in ("known_styles.yaml", "presets.yaml")]
ROWS = [(plan, name) for plan in PLANS for name, row in read_plan(plan).rows.items() if row.train or row.per_image]


@pytest.mark.parametrize(("path", "name"), ROWS, ids=lambda value: getattr(value, "stem", value))
def test_every_row_of_the_plans_is_a_configuration(path: Path, name: str) -> None:
    plan = read_plan(path)
    row = plan.rows[name]
    common = [*plan.overrides, *(row.train or [])]
    if row.per_image:
        common = [word for word in plan.overrides if not word.startswith("data")] + row.per_image
        common += ["data.path=photo.png", "data.short_side=304", "data.multiple=16"]
    for candidate in row.candidates.values():
        plain = composed(*common, *candidate, f"style={(row.styles or plan.styles)[0]}", "seed=2")
        check_config(plain)
        assert plain["data"]["_target_"].endswith("SingleImage") is bool(row.per_image)


def test_the_plan_has_every_objective_and_every_row_of_the_ablation() -> None:
    overrides = {word for row in read_plan(known_styles.PLAN).rows.values() for word in row.train or []}
    assert {f"objective={name}" for name in ("sds", "dds", "pds", "vsd", "dmd")} <= overrides
    rows = {path.stem for path in (ROOT / "conf" / "experiment").glob("ablation_*.yaml")}
    assert {f"experiment={name}" for name in rows} <= overrides


def test_the_styles_of_the_plan_are_known() -> None:
    for style in read_plan(known_styles.PLAN).styles:
        assert operator_of(style) is STYLES[style.removeprefix("demo_")]


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
    network += ["data.batch_size=2", "data.val_max_side=48", "warmup.steps=0"]
    shared = yaml.safe_load(known_styles.PLAN.read_text())
    controls = {name: row for name, row in shared["rows"].items() if row.get("control")}
    plan: dict[str, Any] = {
        **{key: shared[key] for key in ("content", "val", "truth")},
        "multiple": 8,
        "styles": ["demo_oil"],
        "seeds": [0, 1],
        "overrides": [*(word for word in tiny if not word.startswith("steps")), "steps=2", "data=bundled", *network],
        "rows": {
            **controls,
            "SMS": {"train": []},
            "SDS": {
                "train": ["objective=sds"],
                "candidates": {
                    "strong": ["objective.style_guidance=7.5", "optimizer.generator.lr=1"],
                    "weak": ["objective.style_guidance=1", "optimizer.generator.lr=1e-6"],
                },
            },
            "wrong": {"train": ["data.scale=[2,3]"], "seeds": [0]},
        },
    }
    path, out = tmp_path / "plan.yaml", tmp_path / "bench"
    path.write_text(yaml.safe_dump(plan))
    command = ["--out", str(out), "--plan", str(path), "--ceiling-steps", "2", "--figures", "ssim,truth"]
    assert known_styles.main(command) == 1
    results = json.loads((out / "results.json").read_text())
    assert "data.scale" in results["rows"]["wrong"]["missing"][0]
    assert not any(row["missing"] for name, row in results["rows"].items() if name != "wrong")
    assert results["rows"]["SDS"]["candidate"] == "weak"  # the other one ruins the picture
    found = {(r["row"], r["seed"], r["photo"]) for r in results["records"]}
    seeds = {"SMS": [0, 1], "SDS": [0, 1], **{name: [0] for name in controls}}
    assert found == {(row, s, photo) for row, some in seeds.items() for s in some for photo in ("chelsea", "coffee")}
    value = {(r["row"], r["seed"]): r["figures"] for r in results["records"] if r["photo"] == "coffee"}
    assert value["true style", 0]["psnr"] == 100
    # Hardly trained: the photo, but for what 8 bits cost.
    assert value["SDS", 0]["psnr"] == pytest.approx(value["do nothing", 0]["psnr"], abs=0.1)
    assert Image.open(out / next(r["picture"] for r in results["records"] if r["row"] == "SMS")).size == (96, 72)
    assert not (out / "rows/sds_strong/demo_oil/seed0/test").exists()  # its test photos stay untouched
    assert (out / "rows/sms/demo_oil/seed1/export/model.safetensors").is_file()
    assert not list(out.glob("rows/*/*/*/run/checkpoints"))  # the network alone is kept
    table = (out / "table.md").read_text()
    order = [line.split(" |")[0][2:] for line in table.splitlines() if line.startswith("| ")][1:]
    assert order[0] == "true style"  # best first
    assert order[-1] == "wrong"

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if "wrong" not in p.parts and p.parent != out}
    assert known_styles.main([*command, "--rows", *controls, "SMS", "SDS"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
    again = json.loads((out / "results.json").read_text())
    by_place = [sorted(one["records"], key=lambda r: (r["row"], r["seed"], r["photo"])) for one in (again, results)]
    assert by_place[0] == by_place[1]  # their order is that of --rows

    plan["overrides"].append("log_every=2")
    path.write_text(yaml.safe_dump(plan))
    capsys.readouterr()
    assert known_styles.main([*command, "--rows", "SMS"]) == 2
    assert "made in another way" in capsys.readouterr().err
