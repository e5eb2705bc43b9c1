"""Comparisons: rows of every kind, what is kept and what is refused, and the paper's main table on small pipelines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from baseline_parts import controlnet, image_encoder, ip_adapter  # noqa: F401
from diffusers import UNet2DConditionModel
from metrics.network_files import random_picture, write_alexnet, write_art_inception, write_clip, write_pictures
from models import network
from patience import Patience
from PIL import Image
from tiny_pipelines import write_kohya_lora

from smsff.cli import main
from smsff.data.images import load_image
from smsff.metrics import networks
from smsff.stylize.export import save_stylizer
from smsff.stylize.stylizer import load_stylizer

ROOT = Path(__file__).parents[2]
NAMES = ["a.png", "sub/b.jpg"]


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(networks.FOLDER, raising=False)


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """Photos of 100 x 80 pixels, and rows that need no training."""
    write_pictures(tmp_path / "photos", NAMES, width=100)
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a hill"}\n')
    write_pictures(tmp_path / "ready", NAMES, first=10, height=40, width=50)
    save_stylizer(network(), tmp_path / "model")
    return {
        "content": str(tmp_path / "photos"),
        "multiple": 16,
        "styles": ["demo_ink"],
        "rows": {
            "photo": {"nothing": True, "control": True},
            "ready": {"pictures": str(tmp_path / "ready"), "paper": {"ssim": 0.25}},
            "network": {"model": str(tmp_path / "model")},
            "no network": {"model": str(tmp_path / "nothing")},
            "no weights": {"train": ["teacher=sd15"]},
            "no baseline": {"baseline": ["lora_img2img", "teacher=sd15"]},
        },
    }


def compare(root: Path, plan: dict[str, Any], *words: str, status: int) -> dict[str, Any]:
    (root / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["compare", str(root / "plan.yaml"), "--out", str(root / "out"), *words]) == status
    path = root / "out" / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_every_row_is_in_the_table_and_says_what_it_lacks(
    plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(tmp_path, plan, "--figures", "ssim", status=1)
    rows = {name: row["missing"] for name, row in found["rows"].items()}
    assert [rows[name] for name in ("photo", "ready", "network")] == [[], [], []]
    assert "not an exported model" in rows["no network"][0]
    assert "smsff fetch teacher=sd15" in rows["no weights"][0]
    assert "seed=" not in rows["no weights"][0]
    assert "smsff fetch baseline=lora_img2img" in rows["no baseline"][0]
    values = {one["row"]: one["figures"]["ssim"]["value"] for one in found["sets"]}
    assert values["photo"] == pytest.approx(1)
    assert values["ready"] < 0.9

    text = (tmp_path / "out" / "table.md").read_text()
    assert text in capsys.readouterr().out
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[1:] for line in text.splitlines() if "| " in line}
    assert cells["ready"][0] == f"{values['ready']:.3f} (0.250)"
    assert cells["network"][0] == f"**{values['network']:.3f}**"  # the best of the methods
    assert [cells[name][-1] for name in ("photo", "network", "no network")] == ["none needed", "there", "missing"]
    assert float(cells["network"][-3]) >= 0  # seconds
    assert 0.1 < float(cells["network"][-2]) < 40  # GB of the process
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(re.findall(r'<div class="grid line"', page)) == 2  # one line a photo: the photo and two rows
    assert page.count("data:image/jpeg") == 2 * 3
    assert "smsff fetch teacher=sd15" in page

    pictures = tmp_path / "out" / "rows" / "network" / "demo_ink" / "seed0" / "test"
    photo = load_image(tmp_path / "out" / "photos" / "test" / "sub" / "b.png")
    assert photo.shape == (3, 80, 96)  # cropped to multiples of 16
    assert torch.equal(load_image(pictures / "sub" / "b.png"), load_stylizer(tmp_path / "model")(photo[None])[0])
    assert "ready: resized from 50 x 40 pixels" in found["notes"]
    assert Image.open(pictures.parents[3] / "ready/demo_ink/seed0/test/a.png").size == (96, 80)


def test_what_is_there_is_neither_made_nor_measured_again(plan: dict[str, Any], tmp_path: Path) -> None:
    del plan["rows"]["no weights"], plan["rows"]["no baseline"], plan["rows"]["no network"]
    write_pictures(tmp_path / "style", ["s.png", "t.png"], first=20)
    options = ("--weights", f"alexnet={write_alexnet(tmp_path / 'alex.pth')}", f"style_pictures={tmp_path / 'style'}")
    options += ("--weights", f"art_inception={write_art_inception(tmp_path / 'art.pth')}")
    options += ("--weights", f"clip={write_clip(tmp_path / 'clip')}", "--weights", f"pickscore={tmp_path / 'clip'}")
    options += ("prompt='{words}, {caption}'",)
    first = compare(tmp_path, plan, *options, status=0)
    figures = next(one["figures"] for one in first["sets"] if one["row"] == "network")
    lpips, fid = figures["lpips"]["value"], figures["art_fid"]["value"]
    assert figures["artfid"]["value"] == pytest.approx((1 + lpips) * (1 + fid))
    assert {"ssim", "pickscore", "clip_text", "clip_style"} <= set(figures)
    assert set(first["not_measured"]) == {"fid", "kid", "truth"}

    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for part in ("rows", "photos") for p in (tmp_path / "out" / part).rglob("*.*")}

    before = stamps()
    assert compare(tmp_path, plan, *options, status=0) == first
    assert stamps() == before
    (tmp_path / "style" / "t.png").unlink()
    fewer = compare(tmp_path, plan, *options, status=0)
    assert {"artfid", "fid", "kid"} <= set(fewer["not_measured"])
    assert "lpips" in fewer["sets"][0]["figures"]
    before = stamps()
    gone = tmp_path / "out" / "rows" / "ready" / "demo_ink" / "seed0" / "test" / "a.png"
    gone.unlink()
    assert "not all pictures" in str(compare(tmp_path, plan, *options, "--report-only", status=1)["rows"]["ready"])
    compare(tmp_path, plan, *options, status=0)
    assert {path for path, stamp in stamps().items() if before[path] != stamp} == {
        gone, gone.parents[1] / "test.json", gone.parents[1] / "test_evaluation.json"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiple": 8}, "other photos"),
        ({"rows": {"network": {"model": "elsewhere"}}}, "made in another way"),
        ({"styles": ["cubism"]}, "cubism"),
        ({"content": "nowhere"}, "nowhere is not a folder"),
        ({"truth": "{out}/truth"}, "truth is not a folder"),
    ],
)
def test_results_of_something_else_and_folders_without_pictures_are_refused(
    change: dict[str, Any], message: str, plan: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan["rows"] = {"network": plan["rows"]["network"]}
    compare(tmp_path, plan, "--figures", "ssim", status=0)
    compare(tmp_path, {**plan, **change}, "--figures", "ssim", status=2)
    assert message in capsys.readouterr().err
    compare(tmp_path, plan, "--rows", "networks", status=2)
    assert "there is no row networks" in capsys.readouterr().err


@pytest.mark.slow
def test_the_main_table_on_small_pipelines_killed_and_started_again(
    family_pipeline: Callable[..., Path],
    controlnet: Callable[[str], Path],  # noqa: F811
    image_encoder: Path,  # noqa: F811
    ip_adapter: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """One command, four photos, every row of the plan; with SIGKILL in its middle."""
    for i in range(4):
        x = random_picture(i, height=136, width=208).permute(1, 2, 0).contiguous().numpy()
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / "photos" / f"photo{i}.png")
    write_pictures(tmp_path / "style", ["s.png", "t.png"], first=20, height=128, width=128)
    sd1, sdxl, lora = family_pipeline("sd1"), family_pipeline("sdxl"), tmp_path / "lora.safetensors"
    write_kohya_lora(lora, UNet2DConditionModel.from_pretrained(sd1, subfolder="unet"))
    small = "baseline.resolution=128,baseline.steps=2"
    style = f"style.lora={lora},style.base=null"
    rows = {
        "FreeStyle": f"freestyle,teacher.base={sdxl},{small}",
        "StyleID": f"styleid,teacher.base={sd1},{small}",
        "InstantStyle+": f"instantstyle_plus,teacher.base={sdxl},{small},baseline.controlnet={controlnet('sdxl')},"
        f"baseline.ip_adapter={ip_adapter},baseline.image_encoder={image_encoder}",
        "Style-LoRA": f"lora_controlnet,teacher.base={sd1},{small},{style},baseline.controlnet={controlnet('sd1')}",
    }
    command = [sys.executable, "-m", "smsff.cli", "compare", str(ROOT / "benchmarks" / "paper_main.yaml")]
    command += [f"rows.{name}.baseline=[{words}]" for name, words in rows.items()]
    command += [f"content={tmp_path / 'photos'}", f"style_pictures={tmp_path / 'style'}", "short_side=128"]
    command += [f"overrides=[teacher.base={sd1},{style},trainer=cpu,steps=2]", "--out", str(tmp_path / "out")]
    command += ["--weights", f"alexnet={write_alexnet(tmp_path / 'alex.pth')}"]
    command += ["--weights", f"art_inception={write_art_inception(tmp_path / 'art.pth')}"]
    command += ["--weights", f"clip={write_clip(tmp_path / 'clip')}", "--weights", f"pickscore={tmp_path / 'clip'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/rows/*/*/*/test/*.png")}

    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    patience = Patience(process.pid, 900)
    while len(before := made()) < 4 * 5 + 2 and process.poll() is None and patience.left():
        time.sleep(0.2)  # in the middle of the pictures of DDS
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 4 * 5 + 2 <= len(before) < 4 * 7
    # as if it had been killed after the picture, before its checkpoints were removed
    (tmp_path / "out/rows/dds/ghibli/seed0/run/photo0/checkpoints").mkdir(exist_ok=True)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    after = made()
    assert len(after) == 4 * 7
    assert {path: after[path] for path in before} == before
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == [one["row"] for one in results["sets"]]
    for one in results["sets"]:
        assert {"lpips", "ssim", "artfid", "art_fid", "pickscore", "clip_content"} <= set(one["figures"])
        assert (one["seconds"] is None) == (one["memory"] is None) == (one["row"] == "the photo")
    assert "0.326" in (tmp_path / "out" / "table.md").read_text()
    assert not list(tmp_path.glob("out/rows/*/*/*/run/*/checkpoints"))
    if folder := os.environ.get("SMSFF_SCREENSHOTS"):
        shutil.copytree(tmp_path / "out", Path(folder) / "paper_main", dirs_exist_ok=True)
