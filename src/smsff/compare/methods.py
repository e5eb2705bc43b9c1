"""A row of a comparison as a function from a photo to a picture, with what the picture cost."""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from smsff.baselines import run as baselines
from smsff.compare.plan import Job, Plan, filled
from smsff.compare.training import optimised_photo, train, trained_network
from smsff.config.overrides import quoted
from smsff.data.images import find_images, load_image, read_picture, to_image
from smsff.errors import UserError
from smsff.metrics.pairs import PictureFolder
from smsff.randomness import keyed_seed
from smsff.stylize.export import export_checkpoint
from smsff.stylize.stylizer import load_stylizer
from smsff.weights.compose import composed


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo of the comparison: its name, its file, its caption, and its number, which seeds its noise."""

    name: str
    path: Path
    caption: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """A picture, the seconds that it took and the peak memory in bytes; None where neither can be known."""

    image: Image.Image
    seconds: float | None = None
    memory: float | None = None


Method = Callable[[Photo], Made]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows share: the plan, the folder of the results, that of the configuration, and where to compute."""

    plan: Plan
    out: Path
    conf: Path
    device: str


def open_method(setting: Setting, job: Job) -> Method:
    """What makes the pictures of a job; UserError if something is missing, with how to come by it."""
    row, plan = setting.plan.rows[job.row], setting.plan
    own = row.candidates[job.candidate]
    if row.method == "nothing":
        return lambda photo: Made(image=to_image(load_image(photo.path)))
    if row.method == "pictures":
        return _ready(filled(row.pictures, job.style, setting.out))
    if row.method == "baseline":
        return _baseline(setting, job, [*(row.baseline or []), *own])
    common = [*plan.overrides, *(row.train or row.per_image or []), *own, f"style={job.style}", f"seed={job.seed}"]
    if row.method == "per_image":
        return lambda photo: _optimised(setting, job, common, photo)
    if row.method == "train":
        model = trained_network(job.folder, common, setting.conf)
    else:
        model = filled(row.model, job.style, setting.out) or Path()
        if (model / "config.yaml").is_file():  # a run
            model = export_checkpoint(model, job.folder / "export").folder
    stylizer = load_stylizer(model, device=setting.device)
    return _metered(lambda photo: stylizer(read_picture(photo.path)).to_pil(), setting.device)


def _ready(folder: Path | None) -> Method:
    pictures = PictureFolder(folder or Path(), "pictures")

    def make(photo: Photo) -> Made:
        path = pictures.get(photo.name)
        if path is None:
            raise UserError(f"{pictures.root}: there is no picture {photo.name} in it")
        return Made(image=to_image(load_image(path)))

    return make


def _optimised(setting: Setting, job: Job, overrides: Sequence[str], photo: Photo) -> Made:
    width, height = Image.open(photo.path).size
    own = [word for word in overrides if not word.startswith(("data=", "data."))]  # those are for networks
    own += [f"data.path={quoted(str(photo.path))}", f"data.short_side={min(width, height)}"]
    own += [f"data.multiple={setting.plan.multiple}", f"data.caption={quoted(photo.caption)}"]
    folder = run_folder(job, photo)
    seconds, memory = train(folder, own, setting.conf)
    return Made(image=optimised_photo(folder), seconds=seconds, memory=memory)


def _baseline(setting: Setting, job: Job, words: Sequence[str]) -> Method:
    name, overrides = words[0], [*words[1:], f"device={setting.device}"]
    plain = baselines.configuration(name, overrides, conf=str(setting.conf))
    if "style" in plain:
        overrides.append(f"style={job.style}")
    elif "words" in plain["baseline"]:
        overrides.append(f"baseline.words={quoted(words_of(setting.conf, job.style))}")
    plain = baselines.configuration(name, overrides, conf=str(setting.conf))
    if problems := baselines.missing(plain, name, overrides):
        raise UserError("; ".join(problems))
    style = None
    if baselines.needs_style(plain):
        folder = filled(setting.plan.style_pictures, job.style, setting.out)
        if folder is None:
            raise UserError(f"baseline {name} takes a style picture; give style_pictures=FOLDER")
        style = load_image(find_images(folder)[0])
    baseline, device = baselines.load(plain), baselines.device_of(plain)

    def make(photo: Photo) -> Image.Image:
        x, seed = load_image(photo.path), keyed_seed(job.seed, photo.name, 0, 0)
        return to_image(baselines.stylized(baseline, x, photo.caption, style=style, seed=seed, device=device))

    return _metered(make, setting.device)


@lru_cache
def words_of(conf: Path, style: str) -> str:
    """The words of a style; UserError if there is no such style."""
    return str(composed(conf, [f"style={style}"])["style"]["words"])


def run_folder(job: Job, photo: Photo) -> Path:
    """Where a run on one photo lies."""
    return job.folder / "run" / Path(photo.name).with_suffix("")


def _metered(make: Callable[[Photo], Image.Image], device: str) -> Method:
    def metered(photo: Photo) -> Made:
        _reset_peak(device)
        start = time.perf_counter()
        image = make(photo)
        return Made(image=image, seconds=time.perf_counter() - start, memory=_peak(device))

    return metered


def _reset_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> float:
    """Most bytes since the last reset: of the GPU, or resident in main memory (not reset but on Linux)."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        return 1024.0 * int(status.split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
