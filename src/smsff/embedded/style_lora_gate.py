"""Whether a style LoRA can be distilled: on a style whose true result is known for every photo.

    python -m smsff.embedded.style_lora_gate pictures --style watercolour --out outputs/gate/pictures
    python train.py experiment=style_lora name=watercolour data.root=outputs/gate/pictures run_dir=outputs/gate/run
    python -m smsff.embedded.style_lora_gate measure --run outputs/gate/run

(``make style-lora STYLE=watercolour`` does the three.) The first writes pictures made by the style's operator from the
bundled training photos; no photo is shown beside its stylization. The last prints the held-out loss by t, LoRA against
base, and what img2img with the LoRA makes of the bundled validation photo, against doing nothing and against the tone
curve that fits the style best. A LoRA that loses the second has nothing to teach a generator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from smsff.config.check import check_arguments
from smsff.config.schema import StyleLoraConfig
from smsff.data.crops import middle
from smsff.data.folder import load_photos
from smsff.data.images import find_images
from smsff.embedded.content import content
from smsff.embedded.known_styles import STYLES
from smsff.embedded.pictures import training_photos, write_folder
from smsff.errors import UserError
from smsff.metrics import known_style
from smsff.metrics.table import NOTHING, TONE_CURVE
from smsff.style_lora.prompts import TriggerPrompts
from smsff.teacher.sampling import img2img
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion
from smsff.training.callbacks.summary import write_json

SHAPES = ((192, 192), (160, 224), (224, 160))
"""(height, width) of the pictures, in turn."""
T0 = (100, 200, 300, 400, 500)
STEPS = 10
SIDE = 256
"""The middle of a photo is measured, up to this side."""
FIGURES = {"psnr_tone_free": 1, "ssim_tone_free": 1, "style_tone_free": -1}
"""What has to be better, and in which direction."""


def write_styled(style: str, out: Path, *, count: int, seed: int) -> None:
    """Write `count` pictures in a known style and their captions; photo crops and dead leaves as content.

    Raises:
        UserError: an unknown style, or a folder that has pictures already.
    """
    if style not in STYLES:
        raise UserError(f"--style {style}: must be one of {', '.join(sorted(STYLES))}")
    if out.exists() and find_images(out):
        raise UserError(f"--out {out}: has pictures already")
    rng, photos = np.random.default_rng(seed), training_photos()

    def picture(i: int) -> Tensor:
        height, width = SHAPES[i % len(SHAPES)]
        x = content(photos, max(height, width), rng)[:height, :width]
        return STYLES[style](torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None])[0]

    write_folder(out, map(picture, range(count)))


def photos_of(part: str) -> dict[str, Tensor]:
    """The middle of each bundled photo by name, (1, 3, H, W) in [0, 1]."""
    return {name: middle(x, SIDE) for name, x in load_photos(part).items()}


def stylized(teacher: StableDiffusionTeacher, score: Any, prompt: str, x: Tensor, t0: int) -> Tensor:
    """img2img of (1, 3, H, W) in [0, 1]."""
    cond = teacher.encode_prompts([prompt], style=True)
    return (img2img(score, teacher.schedule, teacher.latent, 2 * x - 1, cond, t0=t0, steps=STEPS) + 1) / 2


def measure(teacher: StableDiffusionTeacher, style: str, prompt: str, part: str) -> dict[str, dict[str, float]]:
    """Mean figures over the photos of a part: both controls, and img2img by base and LoRA from every t0."""
    operator, photos = STYLES[style], photos_of(part)
    curve = known_style.fit_tone_curve((x, operator(x)) for x in load_photos("train").values())
    rows: dict[str, list[dict[str, float]]] = {}
    for x in photos.values():
        truth = operator(x)
        results = {NOTHING: x, TONE_CURVE: known_style.apply_tone_curve(x, curve)}
        for t0 in T0:
            results[f"img2img with the base, t0 {t0}"] = stylized(teacher, teacher.base, prompt, x, t0)
            results[f"img2img with the LoRA, t0 {t0}"] = stylized(teacher, teacher.style, prompt, x, t0)
        for row, y in results.items():
            rows.setdefault(row, []).append(known_style.measure(y, truth, x))
    return {row: known_style.mean_figures(figures) for row, figures in rows.items()}


def verdict(rows: Mapping[str, Mapping[str, float]], held_out: Mapping[str, float]) -> dict[str, Any]:
    """Both conditions: held-out loss below the base's in every band; one t0 ahead of both controls in every figure."""
    bands = [name.removeprefix("held_out/lora ") for name in held_out if name.startswith("held_out/lora ")]
    learned = {band: held_out[f"held_out/lora {band}"] < held_out[f"held_out/base {band}"] for band in bands}

    def ahead(row: str) -> bool:
        controls = (rows[NOTHING], rows[TONE_CURVE])
        return all(sign * rows[row][f] > sign * c[f] for c in controls for f, sign in FIGURES.items())

    winners = [row for row in rows if "LoRA" in row and ahead(row)]
    best = max((row for row in rows if "LoRA" in row), key=lambda row: rows[row]["psnr_tone_free"])
    return {
        "held_out_lower_in_every_band": bool(bands) and all(learned.values()),
        "bands": learned,
        "ahead_of_both_controls": winners,
        "best": best,
        "passed": bool(bands) and all(learned.values()) and bool(winners),
    }


def to_markdown(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The table of the figures."""
    head = "| | PSNR | PSNR tone-free | SSIM tone-free | style distance tone-free |\n|---|---:|---:|---:|---:|"
    lines = [
        f"| {row} | {f['psnr']:.2f} | {f['psnr_tone_free']:.2f} | {f['ssim_tone_free']:.3f} "
        f"| {f['style_tone_free']:.2f} |"
        for row, f in rows.items()
    ]
    return "\n".join([head, *lines])


def report(run: Path, *, style: str | None, part: str) -> dict[str, Any]:
    """Measure a run of ``experiment=style_lora``, print the tables and write ``gate_<part>.json`` into it.

    Raises:
        UserError: no such run, or a style whose truth is not known.
    """
    file, metrics = run / "config.yaml", run / "metrics.json"
    if not file.is_file() or not metrics.is_file():
        raise UserError(f"--run {run}: there is no config.yaml and metrics.json in it; train.py writes them")
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    if config.get("task") != "style_lora":
        raise UserError(f"--run {run}: is no run of experiment=style_lora")
    check_arguments(StyleLoraConfig, config, "")
    style = style or config["name"]
    if style not in STYLES:
        raise UserError(f"--style {style}: the truth of this style is not known, only of {', '.join(sorted(STYLES))}")
    held_out = {k: v for k, v in json.loads(metrics.read_text())["figures"].items() if k.startswith("held_out/")}
    lora = run / "lora" / f"{config['name']}.safetensors"
    options = {key: value for key, value in config["teacher"].items() if key != "_target_"}
    teacher = load_stable_diffusion(**{**options, "lora": str(lora)})
    prompts = TriggerPrompts(**{key: value for key, value in config["prompts"].items() if key != "_target_"})
    rows = measure(teacher, style, prompts.fill(config["samples"]["caption"]), part)
    result = {"style": style, "photos": part, "rows": rows, "held_out": held_out, **verdict(rows, held_out)}
    write_json(run / f"gate_{part}.json", result)
    print_report(result)
    return result


def print_report(result: Mapping[str, Any]) -> None:
    print("held-out denoising loss, LoRA / base:")
    for band, better in result["bands"].items():
        ours, base = (result["held_out"][f"held_out/{name} {band}"] for name in ("lora", "base"))
        print(f"  [{'x' if better else ' '}] {band}: {ours:.4f} / {base:.4f}")
    print(f"\n{result['style']}, {result['photos']} photos\n\n{to_markdown(result['rows'])}\n")
    ahead = ", ".join(result["ahead_of_both_controls"]) or "none"
    print(f"Ahead of both controls in all three tone-free figures: {ahead}")
    print(f"The gate is {'passed' if result['passed'] else 'not passed'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after one message for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m smsff.embedded.style_lora_gate", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("pictures", help="write pictures in a known style")
    make.add_argument("--style", required=True, help=", ".join(sorted(STYLES)))
    make.add_argument("--out", required=True, type=Path, help="folder to be written")
    make.add_argument("--count", type=int, default=400, help="pictures (default 400)")
    make.add_argument("--seed", type=int, default=0)
    look = commands.add_parser("measure", help="print the table of a run")
    look.add_argument("--run", required=True, type=Path, help="folder of a run of experiment=style_lora")
    look.add_argument("--style", help="the known style (default: the name of the LoRA)")
    look.add_argument("--part", choices=("val", "test"), default="val", help="bundled photos (test: for the last look)")
    args = parser.parse_args(argv)
    try:
        if args.command == "pictures":
            write_styled(args.style, args.out, count=args.count, seed=args.seed)
        else:
            report(args.run, style=args.style, part=args.part)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
