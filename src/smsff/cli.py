"""The command `smsff stylize MODEL INPUT... --out DIR`.

Exit status: 0 all images stylized, 1 some image could not be (it is named, the others are done), 2 bad usage (nothing
was done), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smsff import __version__
from smsff.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="smsff", description="Stylize images with a model trained by smsff.")
    top.add_argument("--version", action="version", version=f"smsff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    stylize = commands.add_parser(
        "stylize",
        help="stylize images and folders of images",
        description="Stylize images and folders of images, of any size. Names and folders are kept below --out.",
        epilog="Exit status: 0 all done, 1 some images could not be stylized (they are named), 2 bad usage.",
    )
    stylize.add_argument("model", metavar="MODEL", help="folder written by export.py (model.safetensors, config.json)")
    stylize.add_argument("inputs", metavar="INPUT", nargs="+", help="image, or folder that is searched for images")
    stylize.add_argument("--out", metavar="DIR", required=True, help="folder for the results")
    stylize.add_argument("--tile", metavar="N", type=_count, help="tile size in pixels, 0: never tile (default 1024)")
    stylize.add_argument("--threads", metavar="N", type=_positive, help="CPU threads (default: all cores)")
    stylize.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    stylize.add_argument("--overwrite", action="store_true", help="replace results that exist")
    return top


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return stylize(arguments)
    except UserError as error:
        print(f"smsff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("smsff: interrupted", file=sys.stderr)
        return 130


def stylize(arguments: argparse.Namespace) -> int:
    """Stylize every input; one that fails is named and does not stop the others."""
    import torch  # here and below: --help should not wait for torch
    from rich.console import Console
    from rich.progress import track

    from smsff.data.images import load_image, printable
    from smsff.stylize.files import plan, save_image
    from smsff.stylize.stylizer import load_stylizer

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    jobs = plan(arguments.inputs, arguments.out, overwrite=arguments.overwrite)
    stylizer = load_stylizer(arguments.model, device=arguments.device, tile=arguments.tile)

    console, failed = Console(stderr=True, soft_wrap=True), 0
    for source, result in track(jobs, description="stylizing", console=console, transient=True):
        try:
            save_image(stylizer(load_image(source)[None])[0], result)
        except (UserError, OSError, RuntimeError) as error:  # RuntimeError: out of memory, among others
            reason = str(error).splitlines()[0]
            named = reason if printable(source) in reason else f"{printable(source)}: {reason}"
            console.print(f"skipped {named}", markup=False, highlight=False)
            failed += 1
    print(f"{len(jobs) - failed} of {len(jobs)} images stylized, in {printable(Path(arguments.out))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
