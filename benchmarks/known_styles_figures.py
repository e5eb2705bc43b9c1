"""What a run on a known style came to: its pictures and figures, and those of the controls, measured once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from smsff.embedded import demo
from smsff.embedded.known_styles import operator_of
from smsff.metrics import known_style
from smsff.metrics.table import CEILING, IMG2IMG, NOTHING, ONE_STEP, TONE_CURVE
from smsff.stylize.export import export_checkpoint
from smsff.stylize.stylizer import load_stylizer
from smsff.teacher.latent import pad_to_multiple
from smsff.training.callbacks.summary import write_json
from smsff.training.checkpoints import read_checkpoint

Figures = Mapping[str, float]
TRUTH = "true style"
MULTIPLE = 16
"""Photos that are optimised by themselves are mirrored at the right and the bottom to sides of this multiple."""


@dataclass(frozen=True)
class Measured:
    """Figures of one picture, and the file of it."""

    figures: dict[str, float]
    picture: Path


def mean_figures(figures: Sequence[Figures]) -> dict[str, float]:
    """The mean of each figure."""
    return known_style.mean_figures([dict(f) for f in figures])


def measure(y: Tensor, truth: Tensor, source: Tensor) -> dict[str, float]:
    """The figures of `known_style.measure`, and ``content_photo``: the tone-free distance to the photo."""
    figures = known_style.measure(y, truth, source)
    cropped, photo = known_style.crop_border(y), known_style.crop_border(source)
    figures["content_photo"] = known_style.content_distance(known_style.tone_free(cropped, photo), photo).item()
    return figures


class Measurer:
    """Pictures and figures of finished runs, kept beside them.

    Args:
        out: Folder of the benchmark; the mirrored photos and the controls lie in it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.photos = {part: demo.load_photos(part) for part in ("val", "test")}

    def names(self, part: str) -> list[str]:
        return list(self.photos[part])

    def photo_overrides(self, photo: str) -> list[str]:
        """Make train.py take one photo, at its own size."""
        x = next(photos[photo] for photos in self.photos.values() if photo in photos)
        padded = pad_to_multiple(x, MULTIPLE)
        path = self.out / "photos" / f"{photo}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            demo.to_image(padded[0]).save(path)
        side = min(padded.shape[-2:])
        return ["data=single", f"data.path={path}", f"data.short_side={side}", f"data.multiple={MULTIPLE}"]

    def measure(self, folder: Path, style: str, part: str, photo: str | None) -> dict[str, Measured]:
        """Results by photo of a part; of one photo alone if the run is about one."""
        photos = {photo: self.photos[part][photo]} if photo else self.photos[part]

        def results() -> dict[str, Tensor]:
            if photo:
                return {photo: optimised_photo(folder, photos[photo])}
            export_checkpoint(folder, folder / "export")
            stylizer = load_stylizer(folder / "export")
            return {name: stylizer(x) for name, x in photos.items()}

        return kept(folder / f"figures_{part}.json", operator_of(style), photos, results)

    def controls(
        self, folder: Path, style: str, ceiling_steps: int | None, *, every: bool
    ) -> dict[str, dict[str, Measured]]:
        """Results by control and test photo; a finished run of a network gives teacher, network and data.

        Args:
            ceiling_steps: Length of the ceiling's training; None leaves it out.
            every: With those that do not depend on the seed.
        """
        photos, operator, run = self.photos["test"], operator_of(style), demo.Run.open(folder)
        place = self.out / "controls" / style

        def tone_curve() -> dict[str, Tensor]:
            pairs = ((x, operator(x)) for x in demo.load_photos("train").values())
            curve = known_style.fit_tone_curve(pairs)
            return {name: known_style.apply_tone_curve(x, curve) for name, x in photos.items()}

        def ceiling(steps: int) -> dict[str, Tensor]:
            network, _ = demo.paired_network(run, steps)
            return {name: network(x) for name, x in photos.items()}

        made: dict[str, tuple[str, Callable[[], Mapping[str, Tensor]]]] = {}
        if ceiling_steps is not None:
            made[CEILING] = (f"ceiling/seed{run.config['seed']}", lambda: ceiling(ceiling_steps))
        if every:
            made[NOTHING] = ("nothing", lambda: photos)
            made[TONE_CURVE] = ("tone_curve", tone_curve)
            made[IMG2IMG] = ("img2img", lambda: demo.stylized_by_teacher(run, photos, IMG2IMG)[0])
            made[ONE_STEP] = ("one_step", lambda: demo.stylized_by_teacher(run, photos, ONE_STEP)[0])
            made[TRUTH] = ("truth", lambda: {name: operator(x) for name, x in photos.items()})
        return {
            name: kept(place / file / "figures_test.json", operator, photos, make)
            for name, (file, make) in made.items()
        }


def kept(
    path: Path,
    operator: Callable[[Tensor], Tensor],
    photos: Mapping[str, Tensor],
    make: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Measured]:
    """What the file says, or else make the results, measure them, and write the file and, beside it, the pictures."""
    place = path.parent / "pictures"
    if not path.is_file():
        results = make()
        place.mkdir(parents=True, exist_ok=True)
        for name, y in results.items():
            demo.to_image(y[0]).save(place / f"{name}.png")
        write_json(path, {name: measure(results[name], operator(x), x) for name, x in photos.items()})
    return {name: Measured(figures, place / f"{name}.png") for name, figures in json.loads(path.read_text()).items()}


@lru_cache(maxsize=1)
def _teacher(config: str) -> object:
    run = demo.Run(Path(), json.loads(config), lambda x: x)
    return run.build("teacher")


@torch.no_grad()
def optimised_photo(folder: Path, photo: Tensor) -> Tensor:
    """The result of a run on one photo, (1, 3, H, W) in [0, 1], in the size of the photo (1, 3, H, W)."""
    run = demo.Run.open(folder)
    value = read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]["ema.module.value"]
    if run.config["generator"]["_target_"].endswith("LatentGenerator"):
        teacher = _teacher(json.dumps({"teacher": run.config["teacher"]}))
        value = teacher.latent.decode(value)  # type: ignore[attr-defined]
    y: Tensor = (value[..., : photo.shape[-2], : photo.shape[-1]] + 1) / 2
    return y.clamp(0, 1)
