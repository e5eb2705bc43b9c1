"""Every objective on every known style with every seed: train, choose, measure, compare.

    python benchmarks/known_styles.py --out outputs/bench_styles          or: make bench-styles

Trains the rows of the plan (known_styles.yaml) through train.py, one run folder each. Whatever is finished is not done
again, and what was interrupted goes on from its checkpoint: stop it at any time and start it again. Between the
candidates of a row the validation photo decides; the test photos are measured afterwards, and of the chosen runs alone.
Writes results.json, table.md, distances.png and pictures.png (known_styles_report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from known_styles_figures import Measured, Measurer
from known_styles_report import write_report

from smsff.errors import UserError
from smsff.metrics.known_style import composite
from smsff.metrics.table import CEILING
from smsff.training.callbacks.summary import write_json

ROOT = Path(__file__).resolve().parents[1]
PLAN = Path(__file__).with_suffix(".yaml")
KNOWN = sorted(path.stem for path in (ROOT / "conf" / "style").glob("demo_*.yaml"))
"""Choices of ``style`` whose truth can be computed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method of the comparison.

    Attributes:
        name: For people.
        styles, seeds: What it is trained on and with.
        choose_on: The styles between whose candidates the validation photo decides.
        overrides: Of train.py.
        candidates: Further overrides by name, one of which is chosen.
        per_image: Each photo is optimised by itself.
    """

    name: str
    styles: Sequence[str]
    seeds: Sequence[int]
    choose_on: Sequence[str]
    overrides: Sequence[str]
    candidates: dict[str, Sequence[str]] = field(default_factory=lambda: {"": ()})
    per_image: bool = False


@dataclass(frozen=True)
class Job:
    """One run of train.py; `photo` is None for a network, else the name of the one photo."""

    row: Row
    candidate: str
    style: str
    seed: int
    photo: str | None = None

    def folder(self, out: Path) -> Path:
        row = "-".join(filter(None, map(slug, (self.row.name, self.candidate))))
        parts = [row, self.style, f"seed{self.seed}", *([self.photo] if self.photo else [])]
        return out.joinpath("runs", *parts)

    def overrides(self, measurer: Measurer) -> list[str]:
        own = [*self.row.overrides, *self.row.candidates[self.candidate]]
        own += measurer.photo_overrides(self.photo) if self.photo else ["data=bundled"]
        return [*own, f"style={self.style}", f"seed={self.seed}"]

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.row.name, self.candidate, self.style, f"seed {self.seed}", self.photo)))


def slug(text: str) -> str:
    """Letters, digits and _ alone."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Training of the same network on true pairs: optimizer steps, and the seeds that get one."""

    steps: int
    seeds: Sequence[int]


def read_plan(
    path: Path, styles: Sequence[str] | None, seeds: Sequence[int] | None
) -> tuple[list[Row], Ceiling | None]:
    """The rows of a plan, its styles and seeds replaced by the given ones, and the ceiling; None if without controls.

    Raises:
        UserError: an unknown key or style, or two rows that would share folders.
    """
    plan: dict[str, Any] = yaml.safe_load(path.read_text())
    surplus = plan.keys() - {"styles", "choose_on", "seeds", "overrides", "controls", "rows"}
    controls = plan.get("controls") or {}
    surplus |= controls.keys() - {"ceiling_steps", "ceiling_seeds"}
    rows = []
    for name, options in plan["rows"].items():
        surplus |= options.keys() - {"styles", "seeds", "overrides", "candidates", "per_image"}
        row = Row(
            name=name,
            styles=styles or options.get("styles", plan["styles"]),
            seeds=seeds or options.get("seeds", plan["seeds"]),
            choose_on=styles or options.get("styles", plan.get("choose_on", plan["styles"])),
            overrides=[*plan.get("overrides", []), *options.get("overrides", [])],
            candidates=options.get("candidates", {"": []}),
            per_image=options.get("per_image", False),
        )
        if unknown := {*row.styles, *row.choose_on}.difference(KNOWN):
            raise UserError(f"{name}: the truth of {', '.join(unknown)} is not known, only of {', '.join(KNOWN)}")
        rows.append(row)
    if surplus:
        raise UserError(f"{path}: unknown keys {', '.join(sorted(surplus))}")
    slugs = [slug(f"{row.name} {candidate}") for row in rows for candidate in row.candidates]
    if len(set(slugs)) < len(slugs):
        raise UserError(f"{path}: two rows or candidates have the same letters and digits in their names")
    if not controls:
        return rows, None
    return rows, Ceiling(steps=controls["ceiling_steps"], seeds=controls.get("ceiling_seeds", seeds or plan["seeds"]))


# ------------------------------------------------------------------------------------------------------------ training


def finished(folder: Path) -> bool:
    path = folder / "metrics.json"
    return path.is_file() and json.loads(path.read_text())["status"] == "finished"


def train(job: Job, folder: Path, overrides: Sequence[str]) -> bool:
    """Run train.py, or what is left of it; its output goes to train.log. False if it failed.

    Raises:
        UserError: the folder holds a run with other overrides.
    """
    note = folder / "overrides.json"
    if note.is_file() and json.loads(note.read_text()) != list(overrides):
        raise UserError(f"{folder} holds a run with other overrides; remove it, or take another --out")
    if finished(folder):
        return True
    started = any((folder / "checkpoints").glob("*.ckpt"))
    if not started and folder.exists():
        shutil.rmtree(folder)  # interrupted before its first checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(list(overrides)))
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"run_dir={folder}"]
    command += ["ckpt_path=last"] if started else []
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    begin = time.monotonic()
    with (folder / "train.log").open("a") as log:
        status = subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        ).returncode
    ok = status == 0 and finished(folder)
    print(f"{job}: {'trained' if ok else f'FAILED, see {folder}/train.log'} ({time.monotonic() - begin:.0f} s)")
    return ok


def train_all(jobs: Sequence[Job], out: Path, measurer: Measurer, *, part: str, parallel: int) -> list[Job]:
    """Train what is not trained yet, and measure it on the photos of a part; the jobs that failed."""

    def one(job: Job) -> bool:
        folder = job.folder(out)
        ok = train(job, folder, job.overrides(measurer))
        if ok:
            measurer.measure(folder, job.style, part, job.photo)  # kept beside the run
            if part == "test":  # nothing is asked of it any more, and a hundred of them fill a disk
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return ok

    with ThreadPoolExecutor(parallel) as pool:
        return [job for job, ok in zip(jobs, pool.map(one, jobs), strict=True) if not ok]


# ----------------------------------------------------------------------------------------------- choosing, measuring


def jobs_of(row: Row, candidate: str, styles: Sequence[str], seeds: Sequence[int], photos: Sequence[str]) -> list[Job]:
    each: Sequence[str | None] = photos if row.per_image else [None]
    return [Job(row, candidate, style, seed, photo) for style in styles for seed in seeds for photo in each]


def choose(row: Row, out: Path, measurer: Measurer) -> dict[str, Any]:
    """Composite of each candidate on the validation photos, mean of `choose_on`, first seed; and the best of them."""
    scores: dict[str, float | None] = {}
    for name in row.candidates if len(row.candidates) > 1 else ():
        jobs = jobs_of(row, name, row.choose_on, row.seeds[:1], measurer.names("val"))
        if all(finished(job.folder(out)) for job in jobs):
            results = [measurer.measure(job.folder(out), job.style, "val", job.photo) for job in jobs]
            scores[name] = statistics.fmean(composite(m.figures) for photos in results for m in photos.values())
        else:
            scores[name] = None
    known = {name: score for name, score in scores.items() if score is not None}
    only = next(iter(row.candidates)) if len(row.candidates) == 1 else None
    return {"validation": scores, "chosen": min(known, key=known.__getitem__) if known else only}


def record(row: str, style: str, seed: int | None, photo: str, measured: Measured, out: Path) -> dict[str, Any]:
    picture = measured.picture.relative_to(out).as_posix()
    return {"row": row, "style": style, "seed": seed, "photo": photo, "figures": measured.figures, "picture": picture}


def method_records(row: Row, candidate: str, out: Path, measurer: Measurer) -> list[dict[str, Any]]:
    """The results on the test photos of every finished run of the chosen candidate."""
    records = []
    for job in jobs_of(row, candidate, row.styles, row.seeds, measurer.names("test")):
        if finished(job.folder(out)):
            results = measurer.measure(job.folder(out), job.style, "test", job.photo)
            records += [record(row.name, job.style, job.seed, photo, m, out) for photo, m in results.items()]
    return records


def control_records(
    chosen: Sequence[tuple[Row, str]], out: Path, measurer: Measurer, ceiling: Ceiling
) -> list[dict[str, Any]]:
    """Controls of every style, and the ceiling with its seeds, of the first row that trained a network there."""
    records = []
    for style in dict.fromkeys(style for row, _ in chosen for style in row.styles):
        networks = [(row, name) for row, name in chosen if style in row.styles and not row.per_image]
        jobs = [job for row, name in networks for job in jobs_of(row, name, [style], row.seeds, [])]
        done = [job for job in jobs if finished(job.folder(out))]
        of_first_row = [job for job in done if job.row == done[0].row]
        for number, job in enumerate(of_first_row):
            steps = ceiling.steps if job.seed in ceiling.seeds else None
            for name, photos in measurer.controls(job.folder(out), style, steps, every=number == 0).items():
                seed = job.seed if name == CEILING else None
                records += [record(name, style, seed, photo, m, out) for photo, m in photos.items()]
    return records


def run(rows: Sequence[Row], out: Path, *, ceiling: Ceiling | None, parallel: int, training: bool) -> dict[str, Any]:
    """Train, choose, train the other seeds of what was chosen, measure.

    Returns:
        ``records`` (row, style, seed, photo, figures, picture), ``choices`` (composites on the validation photo and the
        choice of every row), ``failed`` runs.
    """
    measurer = Measurer(out)
    val, test = measurer.names("val"), measurer.names("test")
    failed: list[Job] = []
    if training:
        open_rows = [(row, name) for row in rows if len(row.candidates) > 1 for name in row.candidates]
        firsts = [job for row, name in open_rows for job in jobs_of(row, name, row.choose_on, row.seeds[:1], val)]
        failed += train_all(firsts, out, measurer, part="val", parallel=parallel)
    choices = {row.name: choose(row, out, measurer) for row in rows}
    chosen = [(row, choices[row.name]["chosen"]) for row in rows if choices[row.name]["chosen"] is not None]
    if training:
        rest = [job for row, name in chosen for job in jobs_of(row, name, row.styles, row.seeds, test)]
        rest.sort(key=lambda job: job.row.seeds.index(job.seed))  # so that whole seeds are finished early
        failed += train_all(rest, out, measurer, part="test", parallel=parallel)
    records = control_records(chosen, out, measurer, ceiling) if ceiling else []
    for row, name in chosen:
        records += method_records(row, name, out, measurer)
    return {"records": records, "choices": choices, "failed": sorted({str(job) for job in failed})}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 if a run failed, 2 after one message for bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_styles"), help="runs, figures and report")
    parser.add_argument("--plan", type=Path, default=PLAN, help="rows, styles and seeds")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where the report goes; default: --out")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows of the plan, by name")
    parser.add_argument("--styles", nargs="+", metavar="STYLE", help="instead of those of the plan")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="instead of those of the plan")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--no-training", action="store_true", help="report on what is finished")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    out = args.out.resolve()
    try:
        rows, ceiling = read_plan(args.plan, args.styles, args.seeds)
        if unknown := set(args.rows or []) - {row.name for row in rows}:
            raise UserError(
                f"--rows: {', '.join(unknown)} not in {args.plan}; it has {', '.join(r.name for r in rows)}"
            )
        rows = [row for row in rows if not args.rows or row.name in args.rows]
        results = run(rows, out, ceiling=ceiling, parallel=args.jobs, training=not args.no_training)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results["plan"] = yaml.safe_load(args.plan.read_text())
    report = (args.report or out).resolve()
    write_json(report / "results.json", results)
    if not results["records"]:
        print("nothing is finished yet")
        return 1
    print(write_report(results, out, report))
    for name in results["failed"]:
        print(f"FAILED: {name}")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
