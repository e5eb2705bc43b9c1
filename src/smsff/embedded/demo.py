"""What a run on a known style came to: figures of the two test photos, pictures of these and of the validation photos.

    python -m smsff.embedded.demo --run outputs/RUN --model MODEL        after train.py and export.py

Measures the exported model and its controls (`smsff.metrics`), adds the table and the bar to the run's metrics.json,
and writes pictures to RUN/pictures. Afterwards, for several seeds of one style,

    python -m smsff.embedded.demo --mean RUN RUN RUN

prints the mean table, the spread of our row and the bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smsff.config.trust import find_target
from smsff.data.crops import middle
from smsff.data.folder import load_photos
from smsff.data.images import to_image
from smsff.embedded.controls import choose_t, img2img, one_step, train_paired
from smsff.embedded.known_styles import operator_of
from smsff.errors import UserError
from smsff.metrics import known_style, table
from smsff.metrics.table import CEILING, IMG2IMG, NOTHING, ONE_STEP, OURS, TONE_CURVE, Table
from smsff.stylize.stylizer import Stylizer, load_stylizer
from smsff.teacher.score import Teacher
from smsff.training.callbacks.summary import write_json

T_CANDIDATES = (20, 50, 100, 200, 300, 400, 500)
CEILING_STEPS = 800
VALIDATION_SIDE = 256
LABEL_HEIGHT = 26
SPREAD = ("psnr_tone_free", "ssim_tone_free", "style_tone_free")

Pictures = dict[str, dict[str, Tensor]]  # row -> photo -> (1, 3, H, W) in [0, 1]


@dataclass(frozen=True)
class Run:
    """A training run on a known style.

    Attributes:
        folder: With config.yaml and metrics.json.
        config: The resolved configuration.
        operator: The known style, RGB (B, 3, H, W) in [0, 1] to the same.
    """

    folder: Path
    config: dict[str, Any]
    operator: Callable[[Tensor], Tensor]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """
        Raises:
            UserError: the folder holds no run, or one on a style whose truth is not known.
        """
        file = folder / "config.yaml"
        if not file.is_file():
            raise UserError(f"--run {folder}: there is no config.yaml in it; train.py writes one")
        config = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(config, dict)
        try:
            operator = operator_of(config["style"]["name"])
        except UserError as error:
            raise UserError(f"--run {folder}: {error}") from error
        return cls(folder, {str(k): v for k, v in config.items()}, operator)

    def build(self, key: str, **overrides: Any) -> Any:
        """What a node of the configuration describes."""
        node = {**self.config[key], **overrides}
        target = find_target(node, key)
        return target(**{name: value for name, value in node.items() if name != "_target_"})

    @property
    def prompts(self) -> tuple[str, str, str]:
        """The prompts of style and source and the edit prompt, for a photo without a caption."""
        filled: tuple[str, str, str] = self.build("prompts").of(self.config["data"].get("default_caption", ""))
        return filled


def stylized_by_teacher(run: Run, photos: Mapping[str, Tensor], row: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Whole photos by img2img or by one step of the teacher, and how they were made.

    Args:
        row: `IMG2IMG` or `ONE_STEP`; its t is the best one on the middle of the validation photo.
    """
    teacher: Teacher = run.build("teacher")
    photo = middle(next(iter(load_photos("val").values())), VALIDATION_SIDE)
    prompt, source, _ = run.prompts

    def make(x: Tensor, t: int) -> Tensor:
        if row == IMG2IMG:
            return img2img(teacher, 2 * x - 1, prompt=prompt, t0=t)
        return one_step(teacher, 2 * x - 1, prompt=prompt, source=source, t=t)

    t, scores = choose_t(partial(make, photo), 2 * run.operator(photo) - 1, T_CANDIDATES)
    results = {name: (make(x, t) + 1) / 2 for name, x in photos.items()}
    return results, {"t": t, "prompt": prompt, "validation_psnr_tone_free": {str(t): s for t, s in scores.items()}}


def paired_network(run: Run, steps: int) -> tuple[Stylizer, dict[str, Any]]:
    """The run's architecture trained on true pairs of the run's training crops, in the run's precision."""
    torch.manual_seed(run.config["seed"])
    generator = run.build("generator")
    half = str(run.config.get("trainer", {}).get("precision")).startswith("bf16")
    if run.config.get("speed", {}).get("channels_last"):
        generator = generator.to(memory_format=torch.channels_last)
    start = time.monotonic()
    loader = run.build("data", steps=steps).train_dataloader()
    loss = train_paired(generator, (batch["image"] for batch in loader), run.operator, steps=steps, half=half)
    return Stylizer(generator), {"steps": steps, "l1": loss, "seconds": round(time.monotonic() - start, 1)}


def make_pictures(run: Run, stylizer: Stylizer, ceiling_steps: int) -> tuple[Pictures, dict[str, Any]]:
    """Every row of the table for both test photos, the truth as row "truth", and how the controls were made."""
    photos = load_photos("test")
    truth = {name: run.operator(x) for name, x in photos.items()}
    print("the photos by the exported model")
    ours = {name: stylizer(x) for name, x in photos.items()}
    print("control: a tone curve fitted on the training photos")
    curve = known_style.fit_tone_curve((x, run.operator(x)) for x in load_photos("train").values())
    print("controls: img2img with the style LoRA, one step of the teacher")
    by_img2img, img2img_notes = stylized_by_teacher(run, photos, IMG2IMG)
    by_one_step, one_step_notes = stylized_by_teacher(run, photos, ONE_STEP)
    print(f"control: the same network trained on true pairs, {ceiling_steps} steps")
    paired, ceiling_notes = paired_network(run, ceiling_steps)
    pictures = {
        NOTHING: photos,
        TONE_CURVE: {name: known_style.apply_tone_curve(x, curve) for name, x in photos.items()},
        IMG2IMG: by_img2img,
        ONE_STEP: by_one_step,
        OURS: ours,
        CEILING: {name: paired(x) for name, x in photos.items()},
        "truth": truth,
    }
    return pictures, {"img2img": img2img_notes, "one_step": one_step_notes, "paired_ceiling": ceiling_notes}


def measure_pictures(pictures: Pictures) -> Table:
    """The table of all rows."""
    photos, truth = pictures[NOTHING], pictures["truth"]
    return table.build_table(
        {
            row: {name: known_style.measure(y, truth[name], photos[name]) for name, y in pictures[row].items()}
            for row in table.ROWS
        }
    )


def side_by_side(columns: Mapping[str, Tensor]) -> Image.Image:
    """Pictures (1, 3, H, W) of one size in a row, each under its name."""
    images = {name: to_image(x[0]) for name, x in columns.items()}
    width, height = next(iter(images.values())).size
    sheet = Image.new("RGB", (len(images) * (width + 4) - 4, height + LABEL_HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for i, (name, image) in enumerate(images.items()):
        left = i * (width + 4)
        draw.text((left + 4, 3), name, "black", font)
        sheet.paste(image, (left, LABEL_HEIGHT))
    return sheet


def write_pictures(pictures: Pictures, others: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> list[Path]:
    """For each test photo a comparison of the rows and the result alone; before beside after for these and `others`.

    Args:
        others: Before and after of the validation photos. They have no figures: the settings were chosen on them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = {NOTHING: "photo", **{row: row for row in (IMG2IMG, ONE_STEP, OURS, CEILING)}, "truth": "true style"}
    sheets: dict[str, Image.Image] = {}
    for name, ours in pictures[OURS].items():
        sheets[f"{name}_comparison"] = side_by_side({label: pictures[row][name] for row, label in columns.items()})
        sheets[f"{name}_stylized"] = to_image(ours[0])
    tested = {name: (pictures[NOTHING][name], ours) for name, ours in pictures[OURS].items()}
    for name, (before, after) in {**tested, **others}.items():
        sheets[f"{name}_before_after"] = side_by_side({"before": before, "after": after})
    for name, sheet in sheets.items():
        sheet.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in sheets]


def report(run: Run, figures: Table, notes: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """Print the table, the bar and the places; add them to metrics.json and write table.md."""
    path = run.folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    bar = table.bar_report(figures)
    metrics["known_style"] = {"style": run.config["style"]["name"], "table": figures, "bar": bar, **notes}
    write_json(path, metrics)
    text = table.to_markdown(figures)
    (run.folder / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\nThe bar (tone-free, mean of the photos): {'reached' if bar['passed'] else 'not reached'}")
    for check in table.check_bar(figures):
        print(f"  {check}")
    print("\nPictures:", *pictures, sep="\n  ")
    print(f"Figures:\n  {path}\n  {run.folder / 'table.md'}")


def mean_report(folders: Sequence[Path]) -> str:
    """The mean table of measured runs of one style, our row in each of them, and the bar.

    Raises:
        UserError: a folder was not measured, or the runs are of different styles.
    """
    measured = []
    for folder in folders:
        path = folder / "metrics.json"
        metrics = json.loads(path.read_text()) if path.is_file() else {}
        if "known_style" not in metrics:
            raise UserError(
                f"--mean {folder}: no figures of a known style in {path}; measure it first (--run, --model)"
            )
        measured.append(metrics["known_style"])
    styles = sorted({m["style"] for m in measured})
    if len(styles) > 1:
        raise UserError(f"--mean: runs of different styles ({', '.join(styles)})")
    tables: list[Table] = [m["table"] for m in measured]
    mean = table.mean_tables(tables)
    spread = [
        f"  {folder}: " + ", ".join(f"{name} {t[OURS]['mean'][name]:.3f}" for name in SPREAD)
        for folder, t in zip(folders, tables, strict=True)
    ]
    checks = [f"  {check}" for check in table.check_bar(mean)]
    heading = f"{styles[0]}, mean of {len(tables)} runs"
    return "\n".join([heading, "", table.to_markdown(mean), "", f"{OURS}, mean of the photos:", *spread, "", *checks])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after one message for bad input."""
    parser = argparse.ArgumentParser(prog="python -m smsff.embedded.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--model", type=Path, help="folder that export.py wrote")
    parser.add_argument("--mean", type=Path, nargs="+", metavar="RUN", help="measured runs to be averaged instead")
    parser.add_argument("--ceiling-steps", type=int, default=CEILING_STEPS, help="training of the paired ceiling")
    args = parser.parse_args(arguments)
    if args.ceiling_steps < 1:
        parser.error("--ceiling-steps must be at least 1")
    if args.mean is None and (args.run is None or args.model is None):
        parser.error("give --run and --model, or --mean")
    try:
        if args.mean is not None:
            print(mean_report(args.mean))
            return 0
        run = Run.open(args.run)
        stylizer = load_stylizer(args.model)
        pictures, notes = make_pictures(run, stylizer, args.ceiling_steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    others = {name: (photo, stylizer(photo)) for name, photo in load_photos("val").items()}
    written = write_pictures(pictures, others, args.run / "pictures")
    report(run, measure_pictures(pictures), notes, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
