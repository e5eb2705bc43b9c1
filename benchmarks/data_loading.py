"""Photos a second that one process decodes and crops, beside PIL, and that a loader gives, from a folder and shards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import arguments, parser, ratio, spread, take_turns, write

from smsff import cli
from smsff.data.crops import random_window
from smsff.data.datamodule import ImageDataModule
from smsff.data.folder import BUNDLED
from smsff.data.images import load_image


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of quality 90 from the bundled photos, enlarged: natural statistics at a usual size."""
    photos = sorted((BUNDLED / "train").rglob("*.jpg")) or sorted((BUNDLED / "test").rglob("*.jpg"))
    for index in range(count):
        Image.open(photos[index % len(photos)]).convert("RGB").resize(size).save(
            folder / f"{index:03d}.jpg", quality=90
        )


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "")
    made.add_argument("--photos", type=int, default=16)
    made.add_argument("--size", type=int, nargs=2, default=(1024, 768), help="width and height of the photos")
    made.add_argument("--crop", type=int, default=512)
    args = arguments(made, words)
    if args.quick:
        args.photos, args.size, args.crop = 2, (96, 64), 32
    options: dict[str, Any] = {"size": args.crop, "scale": (0.5, 1.0), "flip": True}
    with tempfile.TemporaryDirectory() as name:
        folder, packed = Path(name) / "photos", Path(name) / "shards"
        folder.mkdir()
        write_photos(folder, args.photos, tuple(args.size))
        files = sorted(folder.iterdir())
        cli.main(["shards", str(folder), str(packed)])
        common: dict[str, Any] = {"batch_size": 1, "steps": 10**6, "cache_mb": 0, "val_fraction": 0}
        ours, shards = (
            iter(ImageDataModule(root=str(root), crop_size=args.crop, **common).train_dataloader())
            for root in (folder, packed)
        )

        def crop(image: torch.Tensor) -> None:
            random_window(image, **options, generator=torch.Generator().manual_seed(0)).cut(image, options["size"])

        def with_pil() -> None:
            for path in files:
                with Image.open(path) as image:
                    crop(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())

        def decoded() -> None:
            for path in files:
                crop(load_image(path))

        def loader(batches: Iterator[dict[str, Any]]) -> None:
            for _ in files:
                next(batches)

        candidates: dict[str, Callable[[], None]] = {"PIL and crop": with_pil, "ours and crop": decoded}
        candidates |= {"the whole loader": partial(loader, ours), "the loader, of shards": partial(loader, shards)}
        turns = take_turns(candidates, turns=args.turns, threads=args.threads)
    rates = {name: spread([args.photos / turn[name] for turn in turns]) for name in candidates}
    ratios = {
        "ours over PIL": ratio(turns, "PIL and crop", "ours and crop"),
        "shards over folder": ratio(turns, "the whole loader", "the loader, of shards"),
    }
    return write(args, {"photos": list(args.size), "crop": args.crop, "photos_per_second": rates, "ratios": ratios})


if __name__ == "__main__":
    main()
