"""The report of the known-style benchmark: a table, a plot of content against style distance, a sheet of pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from known_styles_figures import TRUTH, mean_figures
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from smsff.metrics.known_style import composite
from smsff.metrics.table import CEILING, IMG2IMG, NOTHING, ONE_STEP, OURS, TONE_CURVE, bar_report, build_table
from smsff.training.callbacks.summary import write_json

CONTROLS = (NOTHING, TONE_CURVE, IMG2IMG, ONE_STEP, CEILING, TRUTH)
COLUMNS = {  # figure -> heading, decimals
    "composite": ("composite", 2),
    "content_tone_free": ("content distance", 2),
    "style_tone_free": ("style distance", 2),
    "psnr_tone_free": ("PSNR", 2),
    "ssim_tone_free": ("SSIM", 3),
    "psnr": ("PSNR, raw", 2),
    "style": ("style distance, raw", 2),
    "content_photo": ("content distance to the photo", 2),
}
CELL, GAP, LABEL = 192, 4, 22
Records = Sequence[Mapping[str, Any]]


def by_seed(records: Records, row: str, style: str) -> dict[int | None, dict[str, float]]:
    """Figures of a row on a style for each seed: mean of the photos, with the composite of those means."""
    found: dict[int | None, list[Mapping[str, float]]] = {}
    for one in records:
        if one["row"] == row and one["style"] == style:
            found.setdefault(one["seed"], []).append(one["figures"])
    means = {seed: mean_figures(figures) for seed, figures in found.items()}
    return {seed: {**figures, "composite": composite(figures)} for seed, figures in means.items()}


def summary(records: Records, styles: Sequence[str]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Row -> figure -> mean over styles and seeds, spread, seeds.

    The spread is the standard deviation over the seeds of the mean of the styles, None for fewer than two seeds. A row
    is in it if it has every style; of its seeds those count that it has for all styles.
    """
    rows: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for row in dict.fromkeys(one["row"] for one in records):
        parts = [by_seed(records, row, style) for style in styles]
        seeds = [seed for seed in parts[0] if all(seed in part for part in parts)]
        if not seeds:
            continue
        rows[row] = {}
        for figure in COLUMNS:
            values = [statistics.fmean(part[seed][figure] for part in parts) for seed in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else None
            rows[row][figure] = {"mean": statistics.fmean(values), "spread": spread, "seeds": len(seeds)}
    return rows


def to_markdown(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A table, the best composite first, controls in their place among the methods."""
    lines = ["| method | seeds | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |"]
    lines.append("|---|---:" + "|---:" * len(COLUMNS) + "|")
    for row in sorted(rows, key=lambda name: rows[name]["composite"]["mean"]):
        cells = []
        for figure, (_, decimals) in COLUMNS.items():
            mean, spread = rows[row][figure]["mean"], rows[row][figure]["spread"]
            cells.append(f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}"))
        name = f"*{row}*" if row in CONTROLS else row
        lines.append(f"| {name} | {rows[row]['composite']['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(results: Mapping[str, Any], styles: Sequence[str]) -> str:
    """The mean of the styles, then each style, then what the validation photo decided."""
    records = results["records"]
    note = (
        "Test photos; to the truth unless it says photo; tone-free unless raw; ± is the standard deviation over seeds. "
        "Distances in grey levels, composite = (1 + content distance) (1 + style distance): 1 is best. Controls in "
        "italics."
    )
    blocks = [note]
    for title, part in [("Mean of the styles", styles), *((style, [style]) for style in styles)]:
        blocks.append(f"**{title}**\n\n{to_markdown(summary(records, part))}")
    chosen = ["| row | candidate | composite on the validation photo |", "|---|---|---:|"]
    for row, choice in results["choices"].items():
        for name, score in choice["validation"].items():
            if len(choice["validation"]) > 1:
                text = "not finished" if score is None else f"{score:.2f}"
                chosen.append(f"| {row} | {f'**{name}**' if name == choice['chosen'] else name} | {text} |")
    if len(chosen) > 2:
        blocks.append("**Chosen on the validation photo** (bold)\n\n" + "\n".join(chosen))
    if results["failed"]:
        blocks.append("Failed runs: " + "; ".join(results["failed"]))
    return "\n\n".join(blocks) + "\n"


def plot(records: Records, styles: Sequence[str], path: Path) -> None:
    """Content against style distance: one panel a style and one for their mean, one point a row, bars over seeds."""
    parts = [("mean of the styles", list(styles)), *((style, [style]) for style in styles)]
    figure, axes = plt.subplots(1, len(parts), figsize=(5.2 * len(parts), 5), squeeze=False, layout="constrained")
    names = list(dict.fromkeys(one["row"] for one in records))
    colours = dict(zip(names, plt.get_cmap("tab20")(np.linspace(0, 1, max(len(names), 2))), strict=False))
    for axis, (title, part) in zip(axes[0], parts, strict=True):
        for row, figures in summary(records, part).items():
            x, y = figures["content_tone_free"], figures["style_tone_free"]
            marker = "s" if row in CONTROLS else "o"
            axis.errorbar(
                x["mean"],
                y["mean"],
                xerr=x["spread"],
                yerr=y["spread"],
                fmt=marker,
                color=colours[row],
                label=row,
                capsize=2,
            )
        axis.set(title=title, xlabel="content distance, grey levels", ylabel="style distance, grey levels")
        _equal_composites(axis)
    shown = {}  # some rows are in one style's panel alone
    for axis in axes[0]:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=min(7, len(shown)), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _equal_composites(axis: Axes) -> None:
    """Lines along which the composite is the same."""
    axis.set_xlim(left=min(-0.05, axis.get_xlim()[0]))
    axis.set_ylim(bottom=min(-0.05, axis.get_ylim()[0]))
    x = np.linspace(0, axis.get_xlim()[1], 80)
    y = np.linspace(0, axis.get_ylim()[1], 80)
    levels = axis.contour(x, y, (1 + x[None]) * (1 + y[:, None]), levels=8, colors="0.85", linewidths=0.7, zorder=0)
    axis.clabel(levels, fontsize=6)


def sheet(pictures: Mapping[str, Mapping[str, Path]], columns: Sequence[str], path: Path) -> None:
    """The middle of each picture: one line a row, one column each, names beside and above.

    Args:
        pictures: Row -> column -> file; a file that is missing leaves its cell white.
    """
    left = 210
    size = (left + len(columns) * (CELL + GAP), LABEL + len(pictures) * (CELL + GAP))
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for i, column in enumerate(columns):
        draw.text((left + i * (CELL + GAP), 3), column, "black", font)
    for j, (row, files) in enumerate(pictures.items()):
        top = LABEL + j * (CELL + GAP)
        draw.text((4, top + CELL // 2), row, "black", font)
        for i, column in enumerate(columns):
            if column in files and files[column].is_file():
                cell = Image.open(files[column]).convert("RGB")
                x, y = max(0, (cell.width - CELL) // 2), max(0, (cell.height - CELL) // 2)
                image.paste(
                    cell.crop((x, y, min(x + CELL, cell.width), min(y + CELL, cell.height))),
                    (left + i * (CELL + GAP), top),
                )
    image.save(path)


def find_pictures(
    results: Mapping[str, Any], styles: Sequence[str], out: Path
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """The kept pictures of the first seed, by row and by column "style, photo"."""
    photos = list(dict.fromkeys(one["photo"] for one in results["records"]))
    columns = {f"{style}, {photo}": (style, photo) for style in styles for photo in photos}
    found: dict[str, dict[str, Path]] = {}
    for one in results["records"]:
        column = f"{one['style']}, {one['photo']}"
        found.setdefault(one["row"], {}).setdefault(column, out / one["picture"])
    return found, list(columns)


def note_in_runs(records: Records, out: Path) -> None:
    """Give the metrics.json of every network the table that `smsff.embedded.demo` writes, for `smsff report`.

    A seed without a ceiling of its own gets that of the first seed that has one.
    """
    measured: dict[tuple[str, str, int | None], dict[str, Mapping[str, float]]] = {}
    folders = {}
    for one in records:
        key = (one["row"], one["style"], one["seed"])
        measured.setdefault(key, {})[one["photo"]] = one["figures"]
        folders[key] = (out / one["picture"]).parent.parent
    ceilings: dict[str, dict[str, Mapping[str, float]]] = {}
    for (row, style, _), photos in measured.items():
        if row == CEILING:
            ceilings.setdefault(style, photos)
    for (row, style, seed), photos in measured.items():
        path = folders[row, style, seed] / "metrics.json"
        controls = {name: measured.get((name, style, None)) for name in (NOTHING, TONE_CURVE, IMG2IMG, ONE_STEP)}
        rows = {**controls, OURS: photos, CEILING: measured.get((CEILING, style, seed), ceilings.get(style))}
        if row in CONTROLS or not path.is_file() or not all(set(r or ()) == set(photos) for r in rows.values()):
            continue
        figures = build_table({name: r for name, r in rows.items() if r})
        metrics = json.loads(path.read_text())
        noted = {"style": style, "table": figures, "bar": bar_report(figures)}
        if metrics.get("known_style") != noted:
            write_json(path, {**metrics, "known_style": noted})


def write_report(results: Mapping[str, Any], out: Path, report: Path) -> str:
    """Write table.md, distances.png and pictures.png; the table of the mean of the styles, and where all of it is."""
    records = results["records"]
    styles = list(dict.fromkeys(one["style"] for one in records))
    note_in_runs(records, out)
    report.mkdir(parents=True, exist_ok=True)
    (report / "table.md").write_text(write_table(results, styles))
    plot(records, styles, report / "distances.png")
    sheet(*find_pictures(results, styles, out), report / "pictures.png")
    files = ("results.json", "table.md", "distances.png", "pictures.png")
    return "\n".join([to_markdown(summary(records, styles)), "", *(str(report / name) for name in files)])
