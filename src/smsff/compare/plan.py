"""The plan of a comparison: which methods make pictures of which photos in which styles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from smsff.data.images import printable
from smsff.errors import UserError
from smsff.metrics.figures import KINDS

METHODS = ("nothing", "pictures", "model", "baseline", "train", "per_image")


@dataclass(kw_only=True)
class Row:
    """One method; exactly one of `METHODS` is given. docs/guide/compare.md explains its keys."""

    nothing: bool = False
    pictures: str | None = None
    model: str | None = None
    baseline: list[str] | None = None
    train: list[str] | None = None
    per_image: list[str] | None = None
    candidates: dict[str, list[str]] = field(default_factory=dict)
    styles: list[str] | None = None
    seeds: list[int] | None = None
    control: bool = False
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return next(name for name in METHODS if getattr(self, name) not in (None, False))


@dataclass(kw_only=True)
class Plan:
    """A plan; docs/guide/compare.md explains its keys."""

    title: str = "Comparison"
    note: str = ""
    content: str = MISSING
    val: str | None = None
    short_side: int | None = None
    multiple: int = 1
    styles: list[str] = MISSING
    choose_on: list[str] | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    style_pictures: str | None = None
    truth: str | None = None
    prompt: str | None = None
    overrides: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The pictures of one row, candidate, style and seed."""

    row: str
    candidate: str
    style: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.row, self.candidate, self.style, f"seed {self.seed}")))


def read_plan(path: Path, changes: Sequence[str] = ()) -> Plan:
    """The plan of a file, with changes such as ``content=photos`` or ``rows.SMS.seeds=[0]``.

    Raises:
        UserError: the file cannot be read, a key is unknown, missing or of the wrong type, or a row names no method.
    """
    where = printable(path)
    try:
        given = OmegaConf.create(path.read_text(encoding="utf-8"))
        plan: Any = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Plan), given, OmegaConf.from_dotlist(list(changes)))
        )
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from error
    except OmegaConfBaseException as error:
        reason = "no value given" if isinstance(error, MissingMandatoryValue) else str(error).splitlines()[0]
        raise UserError(f"{where}: {error.full_key}: {reason}; the keys are in docs/guide/compare.md") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not a plan ({str(error).splitlines()[0]})") from error
    folders: set[str] = set()
    for name, row in plan.rows.items():
        given_methods = [method for method in METHODS if getattr(row, method) not in (None, False)]
        if len(given_methods) != 1:
            raise UserError(f"{where}: rows.{name}: give one of {', '.join(METHODS)}, not {len(given_methods)}")
        if row.baseline == []:
            raise UserError(f"{where}: rows.{name}.baseline: give the name of a baseline")
        if unknown := row.paper.keys() - KINDS.keys():
            raise UserError(f"{where}: rows.{name}.paper: there is no figure {sorted(unknown)[0]}")
        if len(row.candidates) > 1 and not (plan.truth and plan.val):
            raise UserError(f"{where}: rows.{name}.candidates: the choice between them needs val and truth")
        if row.candidates and given_methods[0] in ("nothing", "pictures", "model"):
            raise UserError(f"{where}: rows.{name}: candidates are overrides; {given_methods[0]} has none")
        row.candidates = row.candidates or {"": []}
        for candidate in row.candidates:
            if (folder := slug(f"{name} {candidate}")) in folders or not folder:
                raise UserError(f"{where}: rows.{name}: another row has the same letters and digits, or it has none")
            folders.add(folder)
    if not plan.rows:
        raise UserError(f"{where}: rows: no value given")
    return plan


def slug(text: str) -> str:
    """Letters, digits and _ alone."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def jobs(plan: Plan, out: Path, row: str, candidate: str, *, choosing: bool = False) -> list[Job]:
    """The jobs of a row; of those of a choice, the first seed alone on the styles of ``choose_on``."""
    one = plan.rows[row]
    styles, seeds = one.styles or plan.styles, one.seeds or plan.seeds
    if choosing:
        styles, seeds = one.styles or plan.choose_on or plan.styles, seeds[:1]
    folder = out / "rows" / slug(f"{row} {candidate}")
    made = {(style, seed): folder / style / f"seed{seed}" for style in styles for seed in seeds}
    return [Job(row=row, candidate=candidate, style=s, seed=n, folder=path) for (s, n), path in made.items()]


def filled(text: str | None, style: str, out: Path) -> Path | None:
    """A path of the plan."""
    return None if text is None else Path(text.replace("{style}", style).replace("{out}", str(out))).expanduser()
