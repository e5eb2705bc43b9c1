"""Folders as train.py, the demo, smsff evaluate and the benchmark write them, small and without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from smsff.metrics.table import ROWS

SIZE = (96, 64)


def picture(shade: int, *, size: tuple[int, int] = SIZE) -> Image.Image:
    """Stripes on a flat ground, a different one for each shade."""
    image = Image.new("RGB", size, (shade % 256, 90, 200 - shade % 200))
    draw = ImageDraw.Draw(image)
    for x in range(0, size[0], 12):
        draw.rectangle((x, 0, x + 5, size[1]), fill=(240, shade % 256, 60))
    return image


def beside(*images: Image.Image, gap: int = 4, top: int = 26) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (len(images) * (width + gap) - gap, height + top), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i * (width + gap), top))
    return sheet


def figures(offset: float) -> dict[str, float]:
    tone_free = ("psnr_tone_free", "ssim_tone_free", "style_tone_free", "content_tone_free")
    names = ("psnr", "ssim", "style", *tone_free, "content")
    return {name: round(offset + 3 * i, 3) for i, name in enumerate(names)}


def training_run(
    folder: Path, *, seed: int = 0, photos: Sequence[str] = ("cat", "cup"), style: str = "cel", steps: int = 200
) -> Path:
    """A finished run with its pictures, curves and table of the known style."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "samples").mkdir()
    config = (
        f"seed: {seed}\nsteps: {steps}\nrun_dir: {folder.name}\nstyle:\n  name: {style}\n  words: '{style} style'\n"
    )
    (folder / "config.yaml").write_text(config + "objective:\n  _target_: smsff.method.sms.Objective\n")
    means = {row: {name: figures(i + seed / 10) for name in (*photos, "mean")} for i, row in enumerate(ROWS)}
    known = {"style": style, "table": means, "bar": {"passed": True, "checks": []}}
    metrics = {"status": "finished", "images_seen": 800, "wall_seconds": 12.5, "known_style": known}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_curves(folder, steps, seed)
    for i, photo in enumerate(photos):
        before, after = picture(20 * i), picture(20 * i + 100 + seed)
        after.save(folder / "pictures" / f"{photo}_stylized.png")
        beside(before, after).save(folder / "pictures" / f"{photo}_before_after.png")
        beside(before, after, picture(7)).save(folder / "pictures" / f"{photo}_comparison.png")
    for step in range(50, steps + 1, 50):
        beside(picture(1), picture(step), top=0).save(folder / "samples" / f"step_{step:06d}.png")
    return folder


def write_curves(folder: Path, steps: int, seed: int) -> None:
    logs = folder / "csv" / "version_0"
    logs.mkdir(parents=True)
    lines = ["epoch,step,train/loss,train/matching,train/lr_generator,val/change"]
    for step in range(9, steps, 10):
        loss = 1 + math.exp(-step / 50) * math.cos(step / 9 + seed)
        change = "" if step % 50 != 49 else f"{step / 1000}"
        lines.append(f"0,{step},{loss},{2 * loss},{1e-3 * 0.95**step},{change}")
    (logs / "metrics.csv").write_text("\n".join(lines) + "\n")


def evaluation(folder: Path, *, count: int = 3, names: Sequence[str] | None = None, lpips: float = 0.3) -> Path:
    """An evaluation with its pictures beside it."""
    folder.mkdir(parents=True)
    names = names or [f"{i}.png" for i in range(count)]
    pairs: dict[str, Any] = {}
    for i, name in enumerate(names):
        paths = [folder / f"{side}_{i}.png" for side in ("content", "result")]
        for path, shade in zip(paths, (10 * i, 10 * i + 120), strict=True):
            picture(shade).save(path)
        own = {"lpips": lpips + i / 100, "ssim": 0.5}
        pairs[name] = {"content": str(paths[0]), "result": str(paths[1]), "figures": own}
    figure = {"standard_error": 0.01, "count": len(names), "references": None, "warning": "n = 3: too few"}
    found = {
        "lpips": {**figure, "title": "LPIPS to the content", "value": lpips, "better": "lower"},
        "ssim": {**figure, "title": "SSIM to the content", "value": 0.5, "better": "higher", "warning": None},
    }
    style = {"folder": "s", "images": 4, "sha256": "ab"}
    content = {
        "smsff": "0.1.0",
        "protocol": 1,
        "sets": {"results": {"folder": "results", "images": len(names)}, "style": style},
        "prompt": None,
        "figures": found,
        "notes": ["a note"],
        "not_measured": {"fid": "the file is not here"},
        "left_out": {"x.png": "no picture of this name"},
        "pairs": pairs,
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def benchmark(folder: Path, *, rows: Mapping[str, float]) -> Path:
    """A comparison of three seeds on two styles and one photo; the number of a row moves all of its figures."""
    (folder / "kept").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for row, offset in rows.items():
        for style in ("cel", "sketch"):
            for seed in range(3):
                name = f"kept/{len(records)}.png"
                picture(len(records)).save(folder / name)
                own = {"psnr": offset + seed / 10, "composite": 3 * (17 + offset + seed / 10)}
                label = {"row": row, "style": style, "seed": seed}
                records.append({**label, "photo": "cat", "figures": own, "picture": name})
                costs = {"seconds": 2.0, "memory": 3e9 if seed else 6e9}
                sets.append({**label, **costs, "figures": {key: {"value": value} for key, value in own.items()}})
    picture(99).save(folder / "cat.png")
    one = {"method": "train", "paper": {"psnr": 7.125}, "validation": {"a": 4.0, "b": None}, "candidate": "a"}
    content = {
        "title": "Bench",
        "note": "A note.",
        "photos": {"cat": "cat.png"},
        "rows": {
            row: {**one, "control": row == "do nothing", "missing": ["two files"] if row == "SDS" else []}
            for row in rows
        },
        "sets": sets,
        "records": records,
        "notes": [],
        "not_measured": {},
        "left_out": {},
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder
