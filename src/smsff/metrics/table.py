"""The table of a known style (rows: controls, ours, ceiling) and the bar that a run has to reach."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from smsff.metrics.known_style import composite, mean_figures

Figures = Mapping[str, float]
Table = dict[str, dict[str, dict[str, float]]]  # row -> photo (or "mean") -> figure -> value

NOTHING, TONE_CURVE, IMG2IMG, ONE_STEP, OURS, CEILING = ROWS = (
    "do nothing",
    "fitted tone curve",
    "img2img with the style LoRA",
    "one step of the teacher",
    "ours",
    "paired ceiling",
)
COLUMNS = {  # figure -> heading, decimals
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 3),
    "style": ("style distance", 2),
    "psnr_tone_free": ("PSNR tone-free", 2),
    "ssim_tone_free": ("SSIM tone-free", 3),
    "style_tone_free": ("style distance tone-free", 2),
    "content_tone_free": ("content distance tone-free", 2),
    "content": ("content distance to the photo", 2),
}


def build_table(measured: Mapping[str, Mapping[str, Figures]]) -> Table:
    """Rows in the order of ROWS, each photo's figures followed by their mean.

    `measured`: row -> photo -> figures. ValueError if a row or a photo is missing.
    """
    if missing := [row for row in ROWS if row not in measured]:
        raise ValueError(f"the table needs a row for {', '.join(missing)}")
    photos = list(measured[NOTHING])
    table: Table = {}
    for row in ROWS:
        if set(measured[row]) != set(photos):
            raise ValueError(f"row '{row}' has photos {sorted(measured[row])}, not {sorted(photos)}")
        table[row] = {photo: dict(measured[row][photo]) for photo in photos}
        table[row]["mean"] = mean_figures(list(table[row].values()))
    return table


def mean_tables(tables: list[Table]) -> Table:
    """The mean of tables of several runs (seeds), entry by entry."""
    return {
        row: {photo: mean_figures([t[row][photo] for t in tables]) for photo in tables[0][row]} for row in tables[0]
    }


def to_markdown(table: Table) -> str:
    """One Markdown table for each photo and one for the mean."""
    blocks = []
    for photo in next(iter(table.values())):
        head = [f"**{photo}**", *(heading for heading, _ in COLUMNS.values())]
        lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
        for row, photos in table.items():
            cells = (f"{photos[photo][figure]:.{decimals}f}" for figure, (_, decimals) in COLUMNS.items())
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


_RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Check:
    """One condition of the bar, `value relation bound`; a value that is not a number fails."""

    name: str
    value: float
    relation: Literal[">=", "<=", ">", "<"]
    bound: float

    @property
    def passed(self) -> bool:
        return bool(_RELATIONS[self.relation](self.value, self.bound))

    def __str__(self) -> str:
        return f"[{'x' if self.passed else ' '}] {self.name}: {self.value:.3f} {self.relation} {self.bound:.3f}"


def check_bar(table: Table) -> list[Check]:
    """The conditions on the tone-free means: against doing nothing, and ahead of the teacher's own results."""
    rows = (NOTHING, IMG2IMG, ONE_STEP, OURS, CEILING)
    nothing, img2img, one_step, ours, ceiling = (table[row]["mean"] for row in rows)
    gain = ours["psnr_tone_free"] - nothing["psnr_tone_free"]
    way = ours["ssim_tone_free"] - nothing["ssim_tone_free"], ceiling["ssim_tone_free"] - nothing["ssim_tone_free"]
    distance, base = ours["style_tone_free"], nothing["style_tone_free"]
    return [
        Check("PSNR over do nothing, dB", gain, ">=", 2),
        Check("SSIM, share of the way to the paired ceiling", way[0] / way[1] if way[1] > 0 else math.nan, ">=", 0.5),
        Check("style distance, ratio to do nothing", distance / base if base > 0 else math.nan, "<=", 0.6),
        Check("composite against img2img", composite(ours), "<", composite(img2img)),
        Check("composite against one step of the teacher", composite(ours), "<", composite(one_step)),
    ]


def bar_report(table: Table) -> dict[str, object]:
    """The bar for metrics.json: every check with its numbers (None for not a number) and whether all of them pass."""
    checks = check_bar(table)
    rows = [asdict(c) | {"value": c.value if math.isfinite(c.value) else None, "passed": c.passed} for c in checks]
    return {"passed": all(c.passed for c in checks), "checks": rows}
