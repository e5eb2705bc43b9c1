"""The command ``smsff evaluate RESULTS --content DIR --style DIR``: figures of stylized pictures.

Writes evaluation.json, evaluation.md and report.html. What each figure is, and how the pictures are prepared for it,
stands in docs/reference/metrics.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smsff.errors import UserError

if TYPE_CHECKING:
    import torch

    from smsff.metrics.evaluation import Evaluation, Networks
    from smsff.metrics.networks import Found
    from smsff.metrics.pairs import Pairing

PROTOCOL = 1
"""Version of the pre-processing in docs/reference/metrics.md; results of different versions are not to be compared."""
FILE = "evaluation.json"
SCALE_RATIO = 1.5
INPUTS = ("style", "prompt", "truth")
"""What a group of figures may need beside results and content."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What is measured, as `add_command` describes it."""

    results: Path
    content: Path
    style: Path | None = None
    truth: Path | None = None
    against: Sequence[Path] = ()
    prompt: str | None = None


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``evaluate`` to the command line; imports nothing heavy."""
    command = commands.add_parser(
        "evaluate",
        help="measure stylized images: LPIPS, FID, KID, ArtFID, PickScore, SSIM, CLIP",
        description="Measure the images of RESULTS against the content images of the same names, a set of style "
        "images and, where it is known, the true stylization.",
        epilog="A figure whose pretrained network is not there is left out, with one sentence on where to get it, "
        "unless --figures names it. Exit status: 0 all measured, 1 some images were left out (they are named), "
        "2 bad usage.",
    )
    command.set_defaults(run=run)
    command.add_argument("results", metavar="RESULTS", type=Path, help="folder of stylized images")
    command.add_argument("--content", metavar="DIR", type=Path, required=True, help="the images they were made from")
    command.add_argument("--style", metavar="DIR", type=Path, help="images in the style (for artfid, fid, kid, clip)")
    command.add_argument("--truth", metavar="DIR", type=Path, help="true stylizations of the content, where known")
    command.add_argument("--prompt", metavar="TEXT", help="for pickscore and clip; {caption} is the content's caption")
    rivals = "other results, for the PickScore rates (repeatable)"
    command.add_argument("--against", metavar="DIR", type=Path, action="append", default=[], help=rivals)
    command.add_argument("--out", metavar="DIR", type=Path, help="folder for the figures (default: RESULTS-evaluation)")
    command.add_argument("--figures", metavar="LIST", help="such as lpips,ssim (default: all that can be measured)")
    command.add_argument(
        "--weights", metavar="KEY=PATH", action="append", default=[], help="place of a pretrained network (repeatable)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; returns the exit status."""
    from smsff.device import chosen_device  # here and below: --help should not wait for torch
    from smsff.metrics.networks import parse_paths

    device = chosen_device(arguments.device)
    out = arguments.out or arguments.results.with_name(arguments.results.resolve().name + "-evaluation")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; it must be a folder")
    sources = Sources(
        results=arguments.results,
        content=arguments.content,
        style=arguments.style,
        truth=arguments.truth,
        against=arguments.against,
        prompt=arguments.prompt,
    )
    groups, needs = choose_groups(arguments.figures, {name: getattr(sources, name) for name in INPUTS})
    missing = {group: f"needs --{name}" for group, name in needs.items()}
    networks, found, absent = load_networks(
        groups, parse_paths(arguments.weights), required=arguments.figures is not None
    )
    missing |= absent
    groups = [group for group in groups if group not in absent]
    if not groups:
        raise UserError("nothing can be measured: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    networks.to(device)
    content = measured(sources, groups, networks, found, missing, device=device, skip=out)
    write(out, content)
    return 1 if content["left_out"] else 0


def measured(
    sources: Sources,
    groups: Sequence[str],
    networks: Networks,
    found: Mapping[str, Found],
    missing: Mapping[str, str],
    *,
    device: torch.device,
    skip: Path | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json; pictures below `skip` are no results."""
    from smsff.data.images import find_images
    from smsff.metrics.evaluation import Evaluator
    from smsff.metrics.pairs import pair_up

    pairing = pair_up(sources.results, sources.content, truth=sources.truth, rivals=sources.against, skip=skip)
    style = find_images(sources.style) if sources.style else []
    if sources.style and not style:
        raise UserError(f"--style {sources.style}: there are no images in it")
    evaluator = Evaluator(groups, networks, prompt=sources.prompt, device=device)
    evaluator.measure_pairs(_progress(pairing.pairs, "measuring the pairs"))
    style_groups = {"artfid", "fid", "kid", "clip"} & set(groups)
    style_count = evaluator.measure_style(_progress(style, "measuring the style set")) if style_groups else 0
    evaluation = evaluator.finish(style_count)
    evaluation.left_out = pairing.left_out | evaluation.left_out
    return record(sources, evaluation, pairing, style, found, missing)


def choose_groups(figures: str | None, given: Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    """The groups of figures to measure, and for each other one the input of `given` that it needs: whatever is
    installed.

    UserError if ``--figures`` names an unknown one, or one for which something is not given.
    """
    from smsff.metrics.figures import GROUPS

    chosen = [name.strip() for name in figures.split(",")] if figures else list(GROUPS)
    if unknown := [name for name in chosen if name not in GROUPS]:
        raise UserError(
            f"--figures: there is no {unknown[0] or 'figure without a name'}; there are {', '.join(GROUPS)}"
        )
    needs = {"artfid": "style", "fid": "style", "kid": "style", "pickscore": "prompt", "truth": "truth"}
    absent = {group: name for group, name in needs.items() if group in chosen and given[name] is None}
    if figures and absent:
        raise UserError("--figures: " + "; ".join(f"{group} needs --{name}" for group, name in absent.items()))
    return [group for group in dict.fromkeys(chosen) if group not in absent], absent


def load_networks(
    groups: Sequence[str], paths: Mapping[str, Path], *, required: bool
) -> tuple[Networks, dict[str, Found], dict[str, str]]:
    """The networks of these groups, where they were found, and why groups are left out: reason by group.

    Raises:
        UserError: a file is damaged, or a network is missing that is `required`.
    """
    from smsff.metrics import networks as files
    from smsff.metrics.clip import Clip
    from smsff.metrics.evaluation import Networks
    from smsff.metrics.figures import NETWORKS
    from smsff.metrics.inception import ArtInception, ReferenceInception
    from smsff.metrics.perceptual import Perceptual

    found: dict[str, Found] = {}
    absent: dict[str, str] = {}
    for group in groups:
        try:
            found |= {key: files.find(key, paths) for key in NETWORKS[group] if key not in found}
        except files.MissingNetworkError as error:
            if required:
                raise UserError(f"--figures: {group} cannot be measured: {error}") from error
            absent[group] = str(error)
    builders: dict[str, tuple[str, Any]] = {
        "alexnet": ("lpips", Perceptual),
        "art_inception": ("art", ArtInception),
        "inception": ("reference", ReferenceInception),
        "clip": ("clip", Clip),
        "pickscore": ("pickscore", Clip),
    }
    built = {builders[key][0]: builders[key][1](item.path) for key, item in found.items()}
    return Networks(**built), found, absent


def record(
    sources: Sources,
    evaluation: Evaluation,
    pairing: Pairing,
    style: Sequence[Path],
    found: Mapping[str, Found],
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """What goes into evaluation.json."""
    from smsff import __version__
    from smsff.data.images import printable
    from smsff.metrics.evaluation import per_image
    from smsff.metrics.figures import as_json
    from smsff.metrics.pairs import set_sha256

    def folder(path: Path) -> str:
        return printable(path.resolve())

    measured = set(evaluation.names)
    pairs = [pair for pair in pairing.pairs if pair.name in measured]
    sets: dict[str, Any] = {
        "results": {"folder": folder(sources.results), "images": len(pairs)},
        "content": {"folder": folder(sources.content), "images": len(pairs)},
    }
    if sources.style:
        sets["style"] = {"folder": folder(sources.style), "images": len(style), "sha256": set_sha256(style)}
    if sources.truth:
        sets["truth"] = {"folder": folder(sources.truth), "images": len(pairs)}
    if sources.against:
        sets["against"] = [folder(path) for path in sources.against]
    networks = {
        key: {"path": folder(item.path), "sha256": item.sha256, "published": item.published}
        for key, item in found.items()
    }
    return {
        "smsff": __version__,
        "protocol": PROTOCOL,
        "sets": sets,
        "prompt": sources.prompt,
        "figures": as_json(evaluation.figures),
        "notes": notes(pairing, style, found),
        "not_measured": dict(missing),
        "left_out": evaluation.left_out,
        "networks": networks,
        "pairs": {
            pair.name: {"result": folder(pair.result), "content": folder(pair.content), "figures": row}
            for pair, row in zip(pairs, per_image(evaluation).values(), strict=True)
        },
    }


def notes(pairing: Pairing, style: Sequence[Path], found: Mapping[str, Found]) -> list[str]:
    """What else a reader of the figures has to know."""
    said = [
        f"{key}: {item.path} is not the published file; figures that use it cannot be compared with others'"
        for key, item in found.items()
        if item.published is False
    ]
    sides = median_side([pair.result for pair in pairing.pairs]), median_side(style)
    if all(sides) and not 1 / SCALE_RATIO <= sides[0] / sides[1] <= SCALE_RATIO and "art_inception" in found:
        said.append(
            f"the results' median shorter side is {sides[0]} pixels, that of the style set {sides[1]}: ArtFID resizes "
            "nothing, so it sees the difference in scale as one in style"
        )
    return said


def median_side(paths: Sequence[Path], most: int = 200) -> int:
    """Median shorter side, in pixels, of at most `most` of the pictures; 0 if none can be read."""
    from smsff.data.images import ImageError, image_size

    sides = []
    for path in paths[:: max(1, len(paths) // most)]:
        with contextlib.suppress(ImageError):
            sides.append(min(image_size(path)))
    return sorted(sides)[len(sides) // 2] if sides else 0


def write(out: Path, content: Mapping[str, Any]) -> None:
    """Print the figures; write evaluation.json, evaluation.md and report.html.

    Raises:
        UserError: the folder cannot be written to.
    """
    import json

    from smsff.atomic import write_atomically
    from smsff.data.images import printable
    from smsff.report.html import write_report
    from smsff.report.text import evaluation_markdown

    text = evaluation_markdown(content)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / FILE, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
        write_atomically(out / "evaluation.md", lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--out {printable(out)}: cannot be written ({error.strerror})") from error
    print(text)
    report = write_report(out / "report.html", [out])
    print(f"Written to {printable(out)}: {FILE}, evaluation.md, {report.name}")


def _progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(file=sys.stderr), transient=True)
