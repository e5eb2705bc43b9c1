"""Seconds until a run has its data: a folder of very many pictures, in one process, and shards of it.

    python benchmarks/many_pictures.py                       10^5 pictures, some minutes
    python benchmarks/many_pictures.py --pictures 1000000

The pictures are names of a few small JPEG files: the work is that of the listing, the headers and the captions.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from timing import arguments, parser, ratio, summary, take_turns, write

from smsff import cli
from smsff.data import folder as folder_module
from smsff.data.datamodule import ImageDataModule
from smsff.data.folder import BUNDLED
from smsff.data.images import list_images

LINKS = 50_000
"""Names that a file gets; ext4 permits 65,000."""
IN_ONE = 10_000
"""Pictures in each folder."""


def make(root: Path, count: int) -> None:
    """Pictures of 96 pixels with captions in one table."""
    photo = next((BUNDLED / "train").glob("*.jpg"))
    with Image.open(photo) as image:
        small = image.convert("RGB").resize((96, 64))
    lines = []
    for i in range(count):
        name = f"{i // IN_ONE:04d}/{i:07d}.jpg"
        if i % IN_ONE == 0:
            (root / name).parent.mkdir(parents=True)
        if i % LINKS == 0:
            small.save(root / name)
            one = root / name
        else:
            os.link(one, root / name)
        lines.append(json.dumps({"file_name": name, "text": f"a photo of the thing number {i}"}) + "\n")
    (root / "metadata.jsonl").write_text("".join(lines))


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "", turns=5)
    made.add_argument("--pictures", type=int, default=100_000)
    args = arguments(made, words)
    if args.quick:
        args.pictures = 50
    folder_module.MANY = args.pictures + 1  # the clock is that of this process
    with tempfile.TemporaryDirectory() as name:
        photos, packed = Path(name) / "photos", Path(name) / "shards"
        make(photos, args.pictures)
        cli.main(["shards", str(photos), str(packed)])

        def start(root: Path) -> None:
            data = ImageDataModule(root=str(root), crop_size=64, batch_size=4, steps=10)
            data.state_dict(), next(iter(data.train_dataloader()))

        candidates = {
            "list": lambda: list_images(photos),
            "folder": lambda: start(photos),
            "shards": lambda: start(packed),
        }
        turns = take_turns(candidates, turns=args.turns, threads=args.threads)
    ratios = {"folder over shards": ratio(turns, "folder", "shards")}
    return write(args, {"pictures": args.pictures, "seconds": summary(turns), "ratios": ratios})


if __name__ == "__main__":
    main()
