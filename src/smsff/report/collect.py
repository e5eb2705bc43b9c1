"""Read the folders of training runs and evaluations. Whatever is missing in one is left out, never an error."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from smsff.data.images import ImageError, image_size, printable
from smsff.errors import UserError
from smsff.report import comparison
from smsff.report.content import Curve, Entry, Slide, Source, spread
from smsff.report.text import listed

MOST_CONFIG = 200_000
"""Characters of a configuration that are shown."""
SLIDES, SAMPLES, SHEETS, WORST = 8, 6, 6, 2
"""Most before/after pairs, pictures from training, comparison sheets of a folder; pairs with the highest LPIPS."""
RUN_FILES = ("config.yaml", "metrics.json", "evaluation.json", comparison.FILE)
SHOWN = (("lpips", "LPIPS"), ("ssim", "SSIM"))
FACTS = ("style.name", "style.words", "objective", "regularizer", "teacher", "generator", "data.root", "steps", "seed")
"""Settings that are shown at once; of a component its class."""


RESULTS = {
    "status": "status",
    "images_seen": "images seen",
    "wall_seconds": "seconds",
    "images_per_second": "images/s",
}
"""Entries of metrics.json that are shown, with their labels."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a training run, an evaluation or a comparison."""
    return any((folder / name).is_file() for name in RUN_FILES)


def expand(folders: Sequence[Path]) -> list[Path]:
    """The runs: the folders themselves, or, of a sweep's folder, the runs one or two levels below, in order of names.

    Raises:
        UserError: a folder is missing, or holds no run.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{printable(folder)}: not a folder")
        runs = (
            [folder]
            if is_run(folder)
            else sorted(filter(is_run, [*folder.glob("*/"), *folder.glob("*/*/")]), key=_natural)
        )
        if not runs:
            raise UserError(
                f"{printable(folder)}: no run in it; a run has config.yaml or metrics.json (train.py), "
                "evaluation.json (smsff evaluate) or results.json (smsff compare)"
            )
        found += runs
    return list({path.resolve(): path for path in found}.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order in which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as it takes to tell all of them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return [printable(name) for name in names]


def collect(folders: Sequence[Path]) -> list[Entry]:
    """One entry for each folder; UserError as in `expand`."""
    runs = expand(folders)
    share = max(1, len(runs) // 3)  # of many runs fewer pictures each
    return [_entry(folder, name, share) for folder, name in zip(runs, short_names(runs), strict=True)]


def _entry(folder: Path, name: str, share: int) -> Entry:
    for file, read in (("evaluation.json", _evaluation), (comparison.FILE, comparison.read_comparison)):
        if (folder / file).is_file():
            try:
                return read(folder, name, share)
            except (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise UserError(f"{printable(folder / file)}: not written by smsff ({reason})") from error
    entry = Entry(name=name, folder=folder, kind="training run")
    config = _read_text(folder / "config.yaml")
    entry.config = config[:MOST_CONFIG]
    with contextlib.suppress(yaml.YAMLError, RecursionError, ValueError):
        entry.settings = dict(_flatten(yaml.safe_load(config)))
    metrics = read_json(folder / "metrics.json")
    entry.facts = _chosen_settings(entry.settings)
    entry.facts += [(label, str(metrics[key])) for key, label in RESULTS.items() if key in metrics]
    entry.curves = read_curves(folder)
    known = metrics.get("known_style")
    if isinstance(known, dict):
        if isinstance(bar := known.get("bar"), dict) and "passed" in bar:
            entry.facts.append(("bar", "reached" if bar["passed"] else "not reached"))
        if isinstance(known.get("table"), dict):
            entry.known_style = str(known.get("style", "")), known["table"]
    entry.slides = _run_slides(folder, name)[: max(1, SLIDES // share)]
    entry.pictures = _run_pictures(folder, name, share)
    return entry


def _chosen_settings(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    targets = {key: settings[f"{key}._target_"].rsplit(".", 1)[-1] for key in FACTS if f"{key}._target_" in settings}
    found = {**settings, **targets}
    return [(key.removesuffix(".name"), found[key]) for key in FACTS if found.get(key, "None") != "None"]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """An object; empty if there is none."""
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, str(node)


def read_curves(folder: Path) -> dict[str, Curve]:
    """What the CSV logger wrote, by figure; a resumed run goes on where the first part ended."""
    files = sorted(folder.glob("csv/version_*/metrics.csv"), key=_natural)
    points: dict[str, dict[float, float]] = {}
    for path in files:
        try:
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    step = _number(row.pop("step", None))
                    for name, text in row.items():
                        value = _number(text)
                        if isinstance(name, str) and name != "epoch" and step is not None and value is not None:
                            points.setdefault(name, {})[step] = value
        except (OSError, csv.Error):
            continue
    return {name: sorted(values.items()) for name, values in points.items() if len(values) > 1}


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except ImageError:
        return None


def _run_slides(folder: Path, name: str) -> list[Slide]:
    """From ``pictures/X_before_after.png``, two pictures of the size of ``X_stylized.png`` in its lower corners."""
    slides = []
    for sheet in sorted(folder.glob("pictures/*_before_after.png")):
        photo = sheet.stem.removesuffix("_before_after")
        size, whole = _size(sheet.with_name(f"{photo}_stylized.png")), _size(sheet)
        if size is None or whole is None or whole[0] < 2 * size[0] or whole[1] < size[1]:
            continue
        top = whole[1] - size[1]
        title = printable(photo)
        before = Source(path=sheet, alt=f"{title}, the photo", box=(0, top, size[0], whole[1]))
        box = (whole[0] - size[0], top, whole[0], whole[1])
        after = Source(path=sheet, alt=f"{title}, stylized by {name}", box=box)
        slides.append(Slide(name=title, before=before, after=after))
    return slides


def _run_pictures(folder: Path, name: str, share: int) -> list[Source]:
    sheets = sorted(folder.glob("pictures/*_comparison.png"))
    samples = sorted(folder.glob("samples/step_*.png"), key=_natural)
    chosen = [sheets[i] for i in spread(len(sheets), max(1, SHEETS // share))]
    chosen += [samples[i] for i in spread(len(samples), max(2, SAMPLES // share))]
    return [
        Source(path=path, alt=f"{name}, {_describe(path)}", caption=_describe(path), wide=True)
        for path in chosen
        if _size(path) is not None
    ]


def _describe(path: Path) -> str:
    if path.parent.name == "samples":
        step = int(re.sub(r"[^0-9]", "", path.stem) or 0)
        return f"step {step:,}: source, result, and relevance where it is computed"
    return f"{printable(path.stem.removesuffix('_comparison'))}: the rows of the table side by side"


def _evaluation(folder: Path, name: str, share: int) -> Entry:
    content = read_json(folder / "evaluation.json")
    entry = Entry(name=name, folder=folder, kind="evaluation")
    figures, pairs = content.get("figures"), content.get("pairs")
    if isinstance(figures, dict):
        entry.figures = {key: value for key, value in figures.items() if isinstance(value, dict)}
    for key, item in (content.get("sets") or {}).items():
        for part in item if isinstance(item, list) else [item]:
            images = f"{part['images']:,} images, " if isinstance(part, dict) and "images" in part else ""
            entry.facts.append((key, images + str(part["folder"] if isinstance(part, dict) else part)))
            if isinstance(part, dict) and "sha256" in part:
                entry.facts.append((f"SHA-256 of the {key} set", str(part["sha256"])))
    if content.get("prompt"):
        entry.facts.append(("prompt", str(content["prompt"])))
    messages = {
        "Notes": [str(note) for note in content.get("notes") or []],
        "Not measured": [f"{key}: {reason}" for key, reason in (content.get("not_measured") or {}).items()],
        "Left out": listed(content.get("left_out") or {}),
    }
    entry.messages = [(heading, lines) for heading, lines in messages.items() if lines]
    entry.slides = _evaluation_slides(pairs if isinstance(pairs, dict) else {}, name, share)
    return entry


def _evaluation_slides(pairs: Mapping[str, Any], name: str, share: int) -> list[Slide]:
    """Evenly from all pairs, so that nobody chose them, and those with the highest LPIPS."""
    names = list(pairs)
    numbers = {pair: pairs[pair]["figures"] for pair in names}
    measured = [pair for pair in names if numbers[pair].get("lpips") is not None]
    worst = sorted(measured, key=lambda pair: -numbers[pair]["lpips"])[:WORST]
    chosen = [names[i] for i in spread(len(names), max(1, SLIDES // share))]
    slides = []
    for pair in [*chosen, *(n for n in worst if n not in chosen and share == 1)]:
        entry = pairs[pair]
        before, after = Path(entry["content"]), Path(entry["result"])
        if _size(before) is None or _size(before) != _size(after):
            continue
        shown = [f"{title} {numbers[pair][key]:.3f}" for key, title in SHOWN if numbers[pair].get(key) is not None]
        caption = ", ".join([*shown, *(["highest LPIPS"] if pair in worst and pair not in chosen else [])])
        slides.append(
            Slide(
                name=pair,
                before=Source(path=before, alt=f"{pair}, the content"),
                after=Source(path=after, alt=f"{pair}, stylized ({name})"),
                caption=caption,
            )
        )
    return slides
