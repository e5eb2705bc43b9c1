"""Make an embedded teacher: a base that knows photos, styles and the way between them, and LoRAs of exact styles.

Stages, each of which goes on where it was when a run is killed and started again with the same options; what is
finished stays in the working folder and is not made again:

1. ``pairs``        photos and loose versions of styles.
2. ``autoencoder``  AutoencoderKL on them; with --start that of a finished teacher.
3. ``latents``      the pairs encoded once.
4. ``base``         U-Net and text encoder; with --start those of a finished teacher, trained on.
5. ``exact``        pictures in the styles that ship, by their exact operators.
6. ``styles``       one LoRA each, by the module of ``train.py experiment=style_lora``, with loose pairs of its kind as
                    prior preservation. No picture is ever shown beside its exact stylization.
7. ``gates``        figures and pictures of the result, see ``gates``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from smsff.embedded import teacher as embedded
from smsff.embedded.recipe import bank
from smsff.embedded.recipe.autoencoder import train_autoencoder
from smsff.embedded.recipe.base import Base, continued_base, new_base, train_base
from smsff.embedded.recipe.gates import measure
from smsff.embedded.recipe.styles import train_style

log = logging.getLogger(__name__)

SHIPPED = ("charcoal", "watercolour", "ink", "oil", "sketch")
STAGES = ("pairs", "autoencoder", "latents", "base", "exact", "styles", "gates")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m smsff.embedded.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=embedded.ASSETS, help="folder of the finished teacher")
    parser.add_argument("--work", type=Path, default=Path("outputs/teacher"), help="folder of all that goes on")
    parser.add_argument("--start", type=Path, help="folder of a teacher whose base is trained on")
    parser.add_argument("--photos", type=Path, help="a folder of further photos, beside the bundled ones")
    parser.add_argument("--pictures", type=int, default=12_000, help="pairs in the bank")
    parser.add_argument("--exact", type=int, default=1500, help="pictures in each exact style")
    parser.add_argument("--autoencoder-steps", type=int, default=3000)
    parser.add_argument("--autoencoder-batch", type=int, default=64)
    parser.add_argument("--base-steps", type=int, default=30_000)
    parser.add_argument("--base-batch", type=int, default=16)
    parser.add_argument("--styles", type=_styles, default=SHIPPED, help="LoRAs to train, separated by commas")
    parser.add_argument("--style-steps", type=int, default=400)
    parser.add_argument("--style-batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=14, help="of the LoRAs")
    parser.add_argument("--stop-after", choices=STAGES, default=STAGES[-1], help="last stage of this call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU, and workers")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES[: STAGES.index(args.stop_after) + 1]:
        log.info("stage %s", stage)
        globals()[f"stage_{stage}"](args)


def _styles(text: str) -> tuple[str, ...]:
    styles = tuple(text.split(","))
    for style in styles:
        if style not in bank.KINDS:
            raise argparse.ArgumentTypeError(f"{style!r} is none of {', '.join(bank.KINDS)}")
    return styles


def stage_pairs(args: argparse.Namespace) -> None:
    bank.make_pairs(args.work, args.pictures, seed=args.seed, photos=args.photos, workers=args.threads)


def stage_autoencoder(args: argparse.Namespace) -> None:
    folder = args.work / "vae"
    if folder.exists():
        return
    if args.start is not None:
        vae = AutoencoderKL.from_pretrained(args.start / "vae", torch_dtype=torch.float32)
    else:
        vae = train_autoencoder(
            bank.load(args.work, "pairs", args.pictures),
            steps=args.autoencoder_steps,
            batch=args.autoencoder_batch,
            seed=args.seed,
            checkpoint=args.work / "autoencoder.ckpt",
            device=args.device,
        )
    vae.save_pretrained(folder)


def stage_latents(args: argparse.Namespace) -> None:
    bank.make_latents(args.work, args.pictures, vae=args.work / "vae", workers=args.threads)


def stage_base(args: argparse.Namespace) -> None:
    if (args.work / "base").exists():
        return
    vae = AutoencoderKL.from_pretrained(args.work / "vae", torch_dtype=torch.float32)
    torch.manual_seed(args.seed)
    base: Base = new_base(vae) if args.start is None else continued_base(args.start, vae)
    latents = bank.load(args.work, "latents", args.pictures)
    train_base(
        base,
        {kind: z.to(args.device) for kind, z in latents.items()},
        steps=args.base_steps,
        batch=args.base_batch,
        seed=args.seed,
        checkpoint=args.work / "base.ckpt",
    )
    base.save(args.work / "base")


def stage_exact(args: argparse.Namespace) -> None:
    bank.make_exact(args.work, args.exact, styles=args.styles, seed=args.seed, photos=args.photos, workers=args.threads)


def stage_styles(args: argparse.Namespace) -> None:
    pairs = bank.load(args.work, "pairs", args.pictures)
    exact = bank.load(args.work, "exact", args.exact, args.styles)
    for style in args.styles:
        alike = pairs["kind"] == bank.KINDS.index(style)
        train_style(
            args.work / "base",
            style,
            {style: exact[style].to(args.device)},
            {kind: pairs[kind][alike].to(args.device) for kind in ("photo", "loose")},
            steps=args.style_steps,
            batch=args.style_batch,
            rank=args.rank,
            seed=args.seed,
            work=args.work,
        )
    shutil.copytree(args.work / "base", args.out, dirs_exist_ok=True)
    shutil.copytree(args.work / "loras", args.out / "loras", dirs_exist_ok=True)


def stage_gates(args: argparse.Namespace) -> None:
    figures = measure(args.out, args.styles, args.work / "gates", bank.KINDS)
    (args.work / "gates.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
