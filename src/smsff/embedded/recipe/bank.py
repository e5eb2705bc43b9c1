"""The pictures an embedded teacher learns from, in files that are made in parallel and kept when a run is killed.

``bank/pairs-<n>.pt``    photo crops and dead leaves (``photo``), each in a loose version of a style (``loose``): random
                         parameters of the operator, which is what the base gets to see; ``kind`` counts the styles
``bank/exact-<n>.pt``    other pictures by the exact operator of each style that ships; their photos are not kept
``bank/latents-<n>.pt``  the pairs, encoded
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from smsff.atomic import write_aside
from smsff.data.crops import to_signed
from smsff.data.images import find_images, load_image, to_image
from smsff.embedded.content import content
from smsff.embedded.known_styles import STYLES, cel, charcoal, comic, ink, oil, pastel, sketch, watercolour
from smsff.embedded.pictures import training_photos

log = logging.getLogger(__name__)

SIZE = 160
"""Pixels of a picture."""
CHUNK = 50
"""Pictures of one file."""
SYNTHETIC = 0.12
"""Share of dead leaves among the pictures."""
KINDS = tuple(STYLES)
"""The styles that the base sees loose versions of."""

Bank = dict[str, Tensor]


@cache
def all_photos(folder: Path | None) -> Sequence[Image.Image]:
    """The bundled training photos and those of a folder."""
    files = [] if folder is None else find_images(folder)
    return training_photos() + [to_image(load_image(file)) for file in files]


def loose_style(x: Tensor, rng: np.random.Generator, kind: str) -> Tensor:
    """(1, 3, H, W) in a style of this kind, with random parameters: what its name may mean."""
    draw, whole = rng.uniform, rng.integers
    if kind == "cel":
        return cel(x, draw(3, 8), draw(8, 40), draw(0.9, 1.5), int(whole(1, 4)))
    if kind == "sketch":
        return sketch(x, draw(1.5, 5), draw(1.2, 4), draw(0.1, 0.8))
    if kind == "oil":
        return oil(x, int(whole(2, 6)), draw(0, 0.8), draw(0.9, 1.4))
    if kind == "watercolour":
        return watercolour(x, draw(0.7, 2.2), draw(0.6, 0.9), int(whole(2, 5)))
    if kind == "ink":
        return ink(x, draw(0.9, 2.2), draw(30, 80), draw(0.3, 0.7), draw(0.6, 1))
    if kind == "comic":
        return comic(x, int(whole(3, 6)), draw(0.9, 1.8), draw(18, 45), draw(1.1, 1.8))
    if kind == "charcoal":
        return charcoal(x, draw(3, 7), draw(1.5, 3.5), draw(0.7, 1.6))
    return pastel(x, draw(6, 18), draw(0.6, 0.9), int(whole(2, 5)))


def _picture(photos: Sequence[Image.Image], rng: np.random.Generator) -> Tensor:
    x = content(photos, SIZE, rng, synthetic=SYNTHETIC)
    return torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None]


def _bytes(pictures: Iterable[Tensor]) -> Tensor:
    return torch.cat([(x * 255 + 0.5).to(torch.uint8) for x in pictures])


def pairs(chunk: int, *, seed: int, photos: Path | None, count: int = CHUNK) -> Bank:
    """One file of pairs, (count, 3, SIZE, SIZE) uint8 each; a pure function of (seed, chunk, photos)."""
    rng = np.random.default_rng([seed, 0, chunk])
    x = [_picture(all_photos(photos), rng) for _ in range(count)]
    kind = rng.integers(len(KINDS), size=count)
    loose = [loose_style(one, rng, KINDS[k]) for one, k in zip(x, kind, strict=True)]
    return {"photo": _bytes(x), "loose": _bytes(loose), "kind": torch.from_numpy(kind)}


def exact(chunk: int, *, seed: int, photos: Path | None, styles: Sequence[str], count: int = CHUNK) -> Bank:
    """One file of pictures in exact styles, (count, 3, SIZE, SIZE) uint8 by style."""
    rng = np.random.default_rng([seed, 1, chunk])
    x = [_picture(all_photos(photos), rng) for _ in range(count)]
    return {style: _bytes(STYLES[style](one) for one in x) for style in styles}


@cache
def _autoencoder(folder: Path) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def latents(file: Path, *, vae: Path) -> Bank:
    """The pairs of a file in scaled latents, half precision; the auto-encoder lies in the folder `vae`."""
    bank, model = torch.load(file, weights_only=True), _autoencoder(vae)

    def encode(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # three times as fast; off by half a percent of the latents
            z: Tensor = model.encode(to_signed(x).to(memory_format=torch.channels_last)).latent_dist.mean
        return (z.float() * model.config.scaling_factor).half()

    parts = {kind: torch.cat([encode(x) for x in bank[kind].split(10)]) for kind in ("photo", "loose")}
    return {"kind": bank["kind"], **parts}


def _make(file: Path, make: Callable[[], Bank]) -> None:
    torch.set_num_threads(1)
    bank = make()
    write_aside(file, lambda path: torch.save(bank, path))


def make_files(work: Path, jobs: Mapping[str, Callable[[], Bank]], *, workers: int) -> None:
    """Make every file of the bank that is not there yet; `jobs` by file name."""
    missing = {work / "bank" / name: job for name, job in jobs.items() if not (work / "bank" / name).exists()}
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_make, file, job) for file, job in missing.items()]
        for i, future in enumerate(futures):
            future.result()
            if (i + 1) % 20 == 0 or i + 1 == len(futures):
                log.info("bank: %d of %d files", i + 1, len(futures))


def names(part: str, pictures: int) -> list[str]:
    """File names of a part with at least so many pictures."""
    return [f"{part}-{chunk:04d}.pt" for chunk in range(-(-pictures // CHUNK))]


def make_pairs(work: Path, pictures: int, *, seed: int, photos: Path | None, workers: int) -> None:
    jobs = {name: partial(pairs, i, seed=seed, photos=photos) for i, name in enumerate(names("pairs", pictures))}
    make_files(work, jobs, workers=workers)


def make_exact(
    work: Path, pictures: int, *, styles: Sequence[str], seed: int, photos: Path | None, workers: int
) -> None:
    jobs = {
        name: partial(exact, i, seed=seed, photos=photos, styles=tuple(styles))
        for i, name in enumerate(names("exact", pictures))
    }
    make_files(work, jobs, workers=workers)


def make_latents(work: Path, pictures: int, *, vae: Path, workers: int) -> None:
    files = zip(names("latents", pictures), names("pairs", pictures), strict=True)
    make_files(work, {one: partial(latents, work / "bank" / other, vae=vae) for one, other in files}, workers=workers)


def load(work: Path, part: str, pictures: int, kinds: Sequence[str] | None = None) -> Bank:
    """The files of a part in one; of `kinds` alone, if they are named."""
    files = [torch.load(work / "bank" / name, weights_only=True, mmap=True) for name in names(part, pictures)]
    return {kind: torch.cat([bank[kind] for bank in files]) for kind in kinds or files[0]}
