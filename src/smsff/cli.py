"""The command `smsff`: stylize images with a trained model; fetch and check the weights that a training needs.

Exit status of all: 0 done, 1 something is missing or some input could not be used (it is named, the others are done),
2 bad usage (nothing was done), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from smsff import __version__
from smsff.compare import command as compare_command
from smsff.compare import study_command
from smsff.errors import UserError, first_line
from smsff.pipes import tolerate_closed
from smsff.report import command as report_command
from smsff.report import evaluate
from smsff.stylize import MAX_STRENGTH

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # has no public name


def number(low: float, high: float = float("inf"), kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """The type of a numeric argument from `low` to `high`: it names what is wrong with a number."""

    def parsed(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            wanted = f"less than {low:g}" if high == float("inf") else f"not between {low:g} and {high:g}"
            raise argparse.ArgumentTypeError(f"{text} is {wanted}")
        return value

    return parsed


def parser() -> argparse.ArgumentParser:
    """The command line; each command's function is in ``run``."""
    top = argparse.ArgumentParser(
        prog="smsff", description="Stylize images with a model trained by smsff; prepare a training (train.py)."
    )
    top.add_argument("--version", action="version", version=f"smsff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stylize(commands)
    _add_fetch(commands)
    _add_doctor(commands)
    _add_caption(commands)
    _add_shards(commands)
    _add_baseline(commands)
    evaluate.add_command(commands)
    report_command.add_command(commands)
    compare_command.add_command(commands)
    study_command.add_command(commands)
    return top


def _add_stylize(commands: Commands) -> None:
    stylize = commands.add_parser(
        "stylize",
        help="stylize images and folders of images",
        description="Stylize images and folders of images, of any size. Names and folders are kept below --out, and "
        "EXIF data, resolution and transparency too; colours are written as sRGB.",
        epilog="Exit status: 0 all done, 1 some images could not be stylized (they are named), 2 bad usage.",
    )
    stylize.set_defaults(run=run_stylize)
    stylize.add_argument("model", metavar="MODEL", help="folder written by export.py, or an .onnx file")
    stylize.add_argument("inputs", metavar="INPUT", nargs="+", help="image, folder that is searched, or quoted pattern")
    stylize.add_argument(
        "--out", metavar="PATH", required=True, help="folder for the results; or FILE.png for one image"
    )
    stylize.add_argument(
        "--strength",
        metavar="S",
        type=number(0, MAX_STRENGTH, float),
        default=1.0,
        help="0: the image itself, 1: the network's result, up to 1.5 (default 1)",
    )
    stylize.add_argument(
        "--quality", metavar="N", type=number(1, 100), default=95, help="of jpg and webp, 1 to 100 (default 95)"
    )
    stylize.add_argument(
        "--tile", metavar="N", type=number(0), help="tile size in pixels, 0: never (default 4096, ONNX 1024)"
    )
    stylize.add_argument("--threads", metavar="N", type=number(1), help="CPU threads (default: all cores)")
    stylize.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    stylize.add_argument(
        "--max-pixels", metavar="N", type=number(1), help="leave out larger images, unread (default 150000000)"
    )
    stylize.add_argument("--overwrite", action="store_true", help="replace results that exist")


def _add_fetch(commands: Commands) -> None:
    command = commands.add_parser(
        "fetch",
        help="bring the weights that a training needs",
        description="Bring the weights that `python train.py OVERRIDE...` needs: resumed, verified, in place only when "
        "whole. Hashes that were not known are recorded in weights.lock.json and enforced from then on.",
        epilog="Exit status: 0 everything is there, 1 something is missing (it is named), 2 bad usage.",
    )
    command.set_defaults(run=run_fetch)
    _add_overrides(command)
    command.add_argument("--dry-run", action="store_true", help="say what would be fetched, and fetch nothing")


def _add_doctor(commands: Commands) -> None:
    command = commands.add_parser(
        "doctor",
        help="say what a training would find missing",
        description="Say in seconds what `python train.py OVERRIDE...` would find missing: weights, data, graphics "
        "card, memory, room on the disk. Nothing is loaded, fetched or written.",
        epilog="Exit status: 0 nothing is missing, 1 something is (it is named, with what to do), 2 bad usage.",
    )
    command.set_defaults(run=run_doctor)
    _add_overrides(command)
    command.add_argument("--verify", action="store_true", help="compute the hashes of the weights, seconds for each GB")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_caption(commands: Commands) -> None:
    command = commands.add_parser(
        "caption",
        help="write captions for a folder of pictures",
        description="Write captions for a folder of pictures to its metadata.jsonl, with a captioning model. Pictures "
        "that have a caption (in any form of data/README.md) are skipped, so a run that was ended goes on where it "
        "stopped.",
        epilog="Exit status: 0 all done, 1 some pictures could not be read (they are named), 2 bad usage.",
    )
    command.set_defaults(run=run_caption)
    command.add_argument("folder", metavar="FOLDER", help="folder of images, searched through")
    model = "Salesforce/blip-image-captioning-base"
    command.add_argument(
        "--model", metavar="M", default=model, help=f"a BLIP captioning model: folder or hub id (default {model})"
    )
    command.add_argument("--prompt", metavar="TEXT", default="", help="how every caption begins: 'a painting of'")
    command.add_argument("--batch-size", metavar="N", type=number(1), default=8, help="pictures at a time (default 8)")
    command.add_argument("--max-words", metavar="N", type=number(1), default=40, help="longest caption in tokens (40)")
    command.add_argument("--overwrite", action="store_true", help="also pictures that have a caption")
    command.add_argument("--threads", metavar="N", type=number(1), help="CPU threads (default: all cores)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def _add_shards(commands: Commands) -> None:
    command = commands.add_parser(
        "shards",
        help="put a folder of pictures into a few large files",
        description="Put the pictures of a folder and their captions into tar files of about equal size, with an "
        "index. A run with data.root=OUT sees the same samples as with the folder. A command that was ended goes on "
        "where it stopped.",
        epilog="Exit status: 0 all done, 1 some pictures could not be read (they are named), 2 bad usage.",
    )
    command.set_defaults(run=run_shards)
    command.add_argument("folder", metavar="FOLDER", help="folder of images, searched through")
    command.add_argument(
        "out", metavar="OUT", help="folder for the shards, outside FOLDER: a new one, or one begun before"
    )
    command.add_argument(
        "--shard-mb", metavar="N", type=number(1), default=1000, help="size of a shard in 10^6 bytes (default 1000)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace shards of a folder that has changed")


def _add_baseline(commands: Commands) -> None:
    command = commands.add_parser(
        "baseline",
        help="stylize photos with a method to compare with",
        description="Stylize photos with a method that others have published: styleid and instantstyle_plus take style "
        "pictures, freestyle words, lora_img2img and lora_controlnet a LoRA, scenimefy its network. Results that are "
        "there are kept, so a run that was ended goes on where it stopped. First: smsff fetch baseline=NAME.",
        epilog="Exit status: 0 all done, 1 some photos could not be stylized (they are named), 2 bad usage.",
    )
    command.set_defaults(run=run_baseline)
    command.add_argument("name", metavar="NAME", help="a file in conf/baseline, such as styleid")
    command.add_argument("--content", metavar="PHOTOS", required=True, help="photo or folder of photos, with captions")
    command.add_argument(
        "--style", metavar="PICTURES", help="style picture or folder of them: a folder of results each"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="folder for the results")
    command.add_argument("--overwrite", action="store_true", help="replace results that exist")
    _add_overrides(command)


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="as for train.py, such as style=ghibli")
    command.add_argument("--conf", metavar="DIR", help="folder of the configuration (default: conf in this folder)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    tolerate_closed()
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and "overrides" not in arguments:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes positional arguments from one place only: here they are those after an option
        arguments.overrides += rest
    try:
        if options := [text for text in rest if text.startswith("-")]:
            from smsff.config.overrides import no_option

            raise no_option(options[0])
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"smsff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("smsff: interrupted", file=sys.stderr)
        return 130


def run_stylize(arguments: argparse.Namespace) -> int:
    """Stylize every input; one that fails is named and does not stop the others."""
    import torch  # here and below: --help should not wait for torch
    from rich.console import Console
    from rich.progress import track

    from smsff.data.images import MAX_PIXELS, printable, read_picture
    from smsff.device import chosen_device
    from smsff.stylize.files import FORMATS, plan, save_image
    from smsff.stylize.stylizer import load_stylizer

    device = chosen_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    jobs = plan(arguments.inputs, arguments.out, overwrite=arguments.overwrite)
    stylizer = load_stylizer(arguments.model, device=device, tile=arguments.tile)

    console, failed, on_white = Console(stderr=True, soft_wrap=True), 0, False

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    for source, result in track(jobs, description="stylizing", console=console, transient=True):
        try:
            picture = read_picture(source, max_pixels=arguments.max_pixels or MAX_PIXELS)
            save_image(stylizer(picture, strength=arguments.strength), result, quality=arguments.quality)
        except Exception as error:  # whatever it is, it must not stop the others
            reason = first_line(error)
            say(f"skipped {reason if printable(source) in reason else f'{printable(source)}: {reason}'}")
            failed += 1
            continue
        if result.stem != source.stem and len(jobs) > 1:
            say(f"{printable(source)} is {printable(result)}: another result has its name")
        if FORMATS[result.suffix.lower()] == "JPEG" and picture.alpha is not None and not on_white:
            say(f"{printable(result)} is laid over white: JPEG has no transparency")
            on_white = True
    print(f"{len(jobs) - failed} of {len(jobs)} images stylized, in {printable(Path(arguments.out))}")
    return 1 if failed else 0


def run_baseline(arguments: argparse.Namespace) -> int:
    """Stylize every photo, once for each style picture; one that fails is named and does not stop the others."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import track

    from smsff.baselines import run
    from smsff.data.captions import read_captions
    from smsff.data.images import load_image, printable, read_picture
    from smsff.randomness import keyed_seed
    from smsff.stylize.files import FORMATS, plan, save_image

    plain = run.configuration(arguments.name, arguments.overrides, conf=arguments.conf)
    if run.needs_style(plain) is (arguments.style is None):
        raise UserError(f"{arguments.name} takes {'' if arguments.style is None else 'no '}style pictures: --style")
    out, content, device = Path(arguments.out), Path(arguments.content), run.device_of(plain)
    styles: dict[Path | None, Path] = {None: out}
    if arguments.style is not None:
        styles = {source: result.with_suffix("") for source, result in plan([arguments.style], out, overwrite=True)}
    if out.suffix.lower() in FORMATS or len(set(styles.values())) < len(styles):
        raise UserError("--out must be a folder, and style pictures differ in more than the ending of their names")
    jobs = [(*job, style) for style, folder in styles.items() for job in plan([content], folder, overwrite=True)]
    named = {source: source.relative_to(content).as_posix() for source, *_ in jobs} if content.is_dir() else {}
    captions = read_captions(content, list(named.values())) if named else {}
    run.claim(out, plain, overwrite=arguments.overwrite)
    waiting = [job for job in jobs if arguments.overwrite or not job[1].exists()]
    if waiting and (problems := run.missing(plain, arguments.name, arguments.overrides)):
        raise UserError("\n".join(problems))
    baseline: Any = run.load(plain) if waiting else None
    console, failed = Console(stderr=True, soft_wrap=True), 0
    for source, result, style in track(waiting, description=arguments.name, console=console, transient=True):
        try:
            picture, shown = read_picture(source), None if style is None else load_image(style)
            seed = keyed_seed(plain["seed"], result.relative_to(out).as_posix(), 0, 0)
            pixels = run.stylized(
                baseline, picture.pixels, captions.get(named.get(source, ""), ""), style=shown, seed=seed, device=device
            )
            save_image(replace(picture, pixels=pixels), result)
        except Exception as error:  # whatever it is, it must not stop the others
            console.print(f"skipped {printable(source)}: {first_line(error)}", markup=False, highlight=False)
            failed += 1
    print(f"{len(jobs) - failed} of {len(jobs)} pictures are in {printable(out)}")
    return 1 if failed else 0


def run_caption(arguments: argparse.Namespace) -> int:
    """Caption a folder."""
    from smsff.data import caption_model

    return caption_model.run(arguments)


def run_shards(arguments: argparse.Namespace) -> int:
    """Write shards of a folder."""
    from smsff.data import shards

    return shards.run(arguments)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Fetch weights."""
    from smsff.weights.fetch import fetch

    return fetch(arguments.overrides, conf=arguments.conf, dry_run=arguments.dry_run)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Look at weights, data and machine."""
    from smsff.weights.doctor import doctor

    return doctor(arguments.overrides, conf=arguments.conf, verify=arguments.verify, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
