"""Make the pictures of a plan, measure them, and gather what came of it; whatever is there is not made again."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smsff.atomic import write_aside
from smsff.compare.methods import Made, Photo, Setting, open_method, run_folder, words_of
from smsff.compare.plan import Job, Plan, filled, jobs
from smsff.compare.training import training_seconds
from smsff.data.captions import METADATA, read_captions
from smsff.data.crops import resize
from smsff.data.images import find_images, load_image, printable, to_image
from smsff.errors import UserError
from smsff.metrics.evaluation import Networks
from smsff.metrics.networks import Found
from smsff.metrics.pairs import set_sha256
from smsff.report.evaluate import PROTOCOL, Sources, measured
from smsff.training.callbacks.summary import write_json

SETS = {"artfid", "fid", "kid"}
"""Groups that compare sets of pictures."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Which figures are measured and with what, as `load_networks` gives it; `missing` says why others are not."""

    groups: Sequence[str]
    networks: Networks
    found: Mapping[str, Found]
    missing: Mapping[str, str]


def prepare(plan: Plan, root: Path, folder: Path) -> list[Photo]:
    """The photos of the comparison, resized and cropped as the plan says, with their captions, in one folder.

    Raises:
        UserError: there are none, or the folder holds those of another comparison.
    """
    found = find_images(root)
    if not found:
        raise UserError(f"{printable(root)}: there are no images in it")
    made = {"photos": set_sha256(found), "short_side": plan.short_side, "multiple": plan.multiple}
    names = [path.relative_to(root).as_posix() for path in found]
    captions = read_captions(root, names)
    photos = []
    for number, source in enumerate(names):
        name = Path(source).with_suffix(".png").as_posix()
        photos.append(Photo(name=name, path=folder / name, caption=captions.get(source, ""), number=number))
    note = folder.with_suffix(".json")
    if note.is_file():
        if json.loads(note.read_text()) != made:
            raise UserError(f"{printable(folder)} holds other photos, or of another size; take another --out")
        return photos
    for path, photo in zip(found, photos, strict=True):
        x = load_image(path)
        height, width = x.shape[1:]
        if plan.short_side:
            factor = plan.short_side / min(height, width)
            x = resize(x, round(height * factor), round(width * factor))
        bottom, right = (side // plan.multiple * plan.multiple for side in x.shape[1:])
        top, left = (x.shape[1] - bottom) // 2, (x.shape[2] - right) // 2
        save(to_image(x[:, top : top + bottom, left : left + right]), photo.path)
    lines = [json.dumps({"file_name": photo.name, "text": photo.caption}) for photo in photos if photo.caption]
    write_aside(folder / METADATA, lambda aside: aside.write_text("".join(f"{line}\n" for line in lines)))
    write_json(note, made)
    return photos


def save(image: Image.Image, path: Path) -> None:
    """A PNG file that is whole or not there."""
    write_aside(path, lambda aside: image.save(aside, "PNG"))


def claim(setting: Setting, job: Job) -> None:
    """Note what a job's folder holds; UserError if it holds pictures that were made in another way."""
    row = setting.plan.rows[job.row]
    made = {row.method: getattr(row, row.method), "candidate": row.candidates[job.candidate]}
    if row.method in ("train", "per_image"):
        made["overrides"] = setting.plan.overrides
    note = job.folder / "row.json"
    if note.is_file() and json.loads(note.read_text()) != made:
        raise UserError(f"{printable(job.folder)} holds pictures that were made in another way; remove it, or take "
                        "another --out")  # fmt: skip
    if not note.is_file():
        write_json(note, made)


def make_all(setting: Setting, wanted: Sequence[Job], photos: Sequence[Photo], part: str) -> dict[Job, str]:
    """Make the pictures that are not there; why a job has not all of them, by job."""
    reasons: dict[Job, str] = {}
    console = Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=len(wanted) * len(photos))
        for job in wanted:
            folder = job.folder / part
            left = [photo for photo in photos if not (folder / photo.name).is_file()]
            for photo in photos:  # a killed comparison may have left those of a picture that is there
                if photo not in left:
                    shutil.rmtree(run_folder(job, photo) / "checkpoints", ignore_errors=True)
            bars.update(task, description=str(job), advance=len(photos) - len(left))
            if not left:
                continue
            try:
                for photo, made in zip(left, map(open_method(setting, job), left), strict=True):
                    _make(made, photo, folder)
                    shutil.rmtree(run_folder(job, photo) / "checkpoints", ignore_errors=True)
                    bars.advance(task)
            except Exception as error:  # whatever it is, it must not stop the other rows
                first = (str(error).splitlines() or [""])[0]
                reasons[job] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
                console.print(f"{job}: {reasons[job]}")
    return reasons


def _make(made: Made, photo: Photo, folder: Path) -> None:
    """Write a picture in the size of its photo, and before it what it cost."""
    size = Image.open(photo.path).size
    costs = folder.with_suffix(".json")
    known = json.loads(costs.read_text()) if costs.is_file() else {}
    resized = f"{made.image.width} x {made.image.height}" if made.image.size != size else None
    write_json(costs, {**known, photo.name: {"seconds": made.seconds, "memory": made.memory, "resized": resized}})
    save(made.image.resize(size, Image.Resampling.BICUBIC) if resized else made.image, folder / photo.name)


def evaluated(setting: Setting, job: Job, part: str, measuring: Measuring) -> dict[str, Any] | None:
    """The evaluation of a job's pictures, kept beside them; None without pictures."""
    plan, pictures, content = setting.plan, job.folder / part, setting.out / "photos" / part
    if not pictures.is_dir() or not (results := find_images(pictures)):
        return None
    style, truth = (filled(path, job.style, setting.out) for path in (plan.style_pictures, plan.truth))
    prompt = plan.prompt and plan.prompt.replace("{words}", words_of(setting.conf, job.style))
    sources = Sources(results=pictures, content=content, style=style, truth=truth, prompt=prompt)
    sets = [set_sha256(find_images(path)) if path else None for path in (content, style, truth)]
    hashes = {name: item.sha256 for name, item in measuring.found.items()}
    inputs = json.dumps([PROTOCOL, set_sha256(results), sets, prompt, list(measuring.groups), hashes])
    key, file = hashlib.sha256(inputs.encode()).hexdigest(), job.folder / f"{part}_evaluation.json"
    if file.is_file() and (kept := json.loads(file.read_text()))["key"] == key:
        return dict(kept)
    few = len(results) < 2 or (style is not None and len(find_images(style)) < 2)
    left = dict.fromkeys(SETS.intersection(measuring.groups) if few else (), "needs two images on each side")
    groups = [group for group in measuring.groups if group not in left]
    missing = {**measuring.missing, **left}
    device = torch.device(setting.device)
    found = measured(sources, groups, measuring.networks, measuring.found, missing, device=device)
    write_json(file, {**found, "key": key})
    return found


def compare(setting: Setting, measuring: Measuring, *, rows: Sequence[str], making: bool = True) -> dict[str, Any]:
    """The content of results.json for some rows of the plan.

    Args:
        making: False only gathers what is there.

    Raises:
        UserError: a folder of the results holds something else, or one of the plan's has no pictures.
    """
    plan, out = setting.plan, setting.out
    for style in dict.fromkeys(style for name in rows for style in plan.rows[name].styles or plan.styles):
        words_of(setting.conf, style)  # refuses an unknown style
        for path in filter(None, (filled(key, style, out) for key in (plan.style_pictures, plan.truth))):
            if not find_images(path):
                raise UserError(f"{printable(path)}: there are no images in it")
    sources = {"test": filled(plan.content, "", out), "val": filled(plan.val, "", out)}
    photos = {part: prepare(plan, source, out / "photos" / part) for part, source in sources.items() if source}
    missing: dict[str, list[str]] = {name: [] for name in rows}

    def make(wanted: Sequence[Job], part: str) -> None:
        for job in wanted:
            claim(setting, job)
        for job, reason in (make_all(setting, wanted, photos[part], part) if making else {}).items():
            missing[job.row].append(reason)

    chosen: dict[str, str] = {}
    validation: dict[str, dict[str, float | None]] = {}
    for name in rows:
        trial = {candidate: jobs(plan, out, name, candidate, choosing=True) for candidate in plan.rows[name].candidates}
        if len(trial) > 1:
            make([job for part in trial.values() for job in part], "val")
            validation[name] = {candidate: _composite(setting, some, measuring) for candidate, some in trial.items()}
            scores = {candidate: score for candidate, score in validation[name].items() if score is not None}
            if not scores:
                missing[name].append("no candidate could be measured")
                continue
            chosen[name] = min(scores, key=scores.__getitem__)
        else:
            chosen[name] = next(iter(trial))
    wanted = [job for name, candidate in chosen.items() for job in jobs(plan, out, name, candidate)]
    seeds = {name: plan.rows[name].seeds or plan.seeds for name in rows}
    make(sorted(wanted, key=lambda job: seeds[job.row].index(job.seed)), "test")  # whole seeds are finished early
    found: dict[Job, dict[str, Any]] = {}
    for job in wanted:
        try:
            content = evaluated(setting, job, "test", measuring)
        except UserError as error:  # pictures that are too small for a figure
            missing[job.row].append(str(error))
            continue
        if content is not None:
            found[job] = content
        if content is None or len(content["pairs"]) < len(photos["test"]):
            missing[job.row] += [] if missing[job.row] else [f"{job}: not all pictures are made yet"]
    return {
        "title": plan.title,
        "note": plan.note,
        "photos": {_stem(photo.name): f"photos/test/{photo.name}" for photo in photos["test"]},
        "rows": {
            name: {
                "method": plan.rows[name].method,
                "control": plan.rows[name].control,
                "paper": plan.rows[name].paper,
                "candidate": chosen.get(name),
                "validation": validation.get(name, {}),
                "missing": list(dict.fromkeys(missing[name])),
            }
            for name in rows
        },
        **_gathered(found, out),
    }


def _gathered(found: Mapping[Job, Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """The parts of results.json that come from the evaluations."""
    sets, records = [], []
    notes: dict[str, None] = {}
    not_measured: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for job, content in found.items():
        costs = json.loads((job.folder / "test.json").read_text())
        seconds, memory = ([c[key] for c in costs.values() if c[key] is not None] for key in ("seconds", "memory"))
        label: dict[str, Any] = {"row": job.row, "style": job.style, "seed": job.seed}
        median = statistics.median(seconds) if seconds else None
        measures = {"seconds": median, "memory": max(memory, default=None), "figures": content["figures"]}
        sets.append({**label, **measures, "training_seconds": training_seconds(job.folder)})
        for name, pair in content["pairs"].items():
            picture = (job.folder / "test" / name).relative_to(out).as_posix()
            own = {"photo": _stem(name), "picture": picture, "figures": pair["figures"]}
            records.append({**label, **own, **costs.get(name, {})})
        resized = sorted({cost["resized"] for cost in costs.values()} - {None})
        notes |= dict.fromkeys([f"{job.row}: resized from {', '.join(resized)} pixels"] if resized else [])
        notes |= dict.fromkeys(content["notes"])
        not_measured |= content["not_measured"]
        left_out |= {f"{job}: {name}": reason for name, reason in content["left_out"].items()}
    parts = {"not_measured": not_measured, "left_out": left_out}
    return {"sets": sets, "records": records, "notes": list(notes), **parts}


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _composite(setting: Setting, some: Sequence[Job], measuring: Measuring) -> float | None:
    """Mean composite on the validation photos; None if a job has not all its pictures."""
    found = [evaluated(setting, job, "val", measuring) for job in some]
    known = [
        c["figures"]["composite"]["value"] for c in found if c and "composite" in c["figures"] and not c["left_out"]
    ]
    return statistics.fmean(known) if len(known) == len(some) else None
