"""Write the report of runs and evaluations as one HTML file that opens offline and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from smsff import __version__
from smsff.atomic import write_atomically
from smsff.data.images import printable
from smsff.errors import UserError
from smsff.report import curves, tables
from smsff.report.collect import collect
from smsff.report.content import Curve, Entry, Gallery, Slide, Source
from smsff.report.pictures import LIMIT, embed
from smsff.report.text import grouped_warnings

PAGE = Path(__file__).parent / "page"
FIRST = ("train/loss", "train/matching", "train/spectrum", "train/fake", "train/gradient", "train/relevance")
"""Figures whose curves come first."""


def write_report(path: str | Path, runs: Sequence[str | Path], *, title: str | None = None, limit: int = LIMIT) -> Path:
    """Write the report of training runs, evaluations, comparisons or folders of such, and return its path.

    `title` is made from the names if not given; `limit` is the most bytes of all pictures in the page.
    """
    target = Path(path)
    entries = collect([Path(run) for run in runs])
    page = render(
        entries,
        title=title or (entries[0].name if len(entries) == 1 else f"Comparison of {len(entries)} runs"),
        limit=limit,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # a lone surrogate, from a file name in some other encoding, has no place in UTF-8
        write_atomically(target, lambda temporary: temporary.write_text(page, encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{printable(target)}: the report cannot be written ({error.strerror})") from error
    return target


def render(entries: Sequence[Entry], *, title: str, limit: int = LIMIT) -> str:
    """The page as text; every name and number in it is escaped."""
    pictures = embed(_sources(entries), limit=limit)
    for entry in entries:
        entry.slides = [slide for slide in entry.slides if slide.before in pictures and slide.after in pictures]
        entry.pictures = [source for source in entry.pictures if source in pictures]
    galleries = [*shared_pictures(entries), *(gallery for entry in entries for gallery in entry.galleries)]
    found = [
        *(table for entry in entries for table in entry.tables),
        tables.evaluation_table(entries),
        *tables.known_style_tables(entries),
        tables.settings_table(entries),
    ]
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        entries=entries,
        pictures=pictures,
        tables=[table for table in found if table is not None],
        warnings=[(entry.name, *group) for entry in entries for group in grouped_warnings(entry.figures)],
        galleries=[
            replace(gallery, pictures=tuple(item for item in gallery.pictures if item[1] in pictures))
            for gallery in galleries
        ],
        charts=curves.charts(_by_figure(entries), [entry.name for entry in entries]),
        geometry=curves,
        style=style,
        script=script,
        policy=content_policy(style, script),
        version=__version__,
    )


def _sources(entries: Sequence[Entry]) -> list[Source]:
    """Every picture of the page."""
    found: list[Source] = []
    for entry in entries:
        found += [side for slide in entry.slides for side in (slide.before, slide.after)]
        found += entry.pictures
        found += [source for gallery in entry.galleries for _, source in gallery.pictures]
    return found


def content_policy(style: str, script: str) -> str:
    """Content security policy: nothing is loaded from anywhere, and no other style or script than ours runs."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    style_hash, script_hash = digests
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def shared_pictures(entries: Sequence[Entry]) -> list[Gallery]:
    """For each picture that two or more runs stylized: before, and after by each of them."""
    found: dict[str, list[tuple[str, Slide]]] = {}
    for entry in entries:
        for slide in entry.slides:
            found.setdefault(slide.name, []).append((entry.name, slide))
    return [
        Gallery(title=name, pictures=(("before", slides[0][1].before), *((run, slide.after) for run, slide in slides)))
        for name, slides in found.items()
        if len(slides) > 1
    ]


def _by_figure(entries: Sequence[Entry]) -> Mapping[str, Mapping[str, Curve]]:
    """figure -> run -> curve, the most telling figures first, constant ones last and only if nothing else is there."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.curves))
    telling = [
        name for name in names if len({value for entry in entries for _, value in entry.curves.get(name, ())}) > 1
    ]
    order = {name: i for i, name in enumerate(FIRST)}
    ordered = sorted(telling, key=lambda name: (order.get(name, len(order)), names.index(name)))
    return {name: {entry.name: entry.curves[name] for entry in entries if name in entry.curves} for name in ordered}
