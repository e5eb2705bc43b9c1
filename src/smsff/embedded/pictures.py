"""Pictures in a known style: what a LoRA is trained on when its true result is to be known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch import Tensor

from smsff.data.captions import METADATA
from smsff.data.folder import BUNDLED
from smsff.data.images import load_image, to_image

CAPTIONS = ("a picture", "a picture", "a photo")
"""What they are called, in turn."""


def training_photos() -> list[Image.Image]:
    """The bundled training photos and textures."""
    files = sorted(path for part in ("textures", "train") for path in (BUNDLED / part).glob("*.jpg"))
    return [to_image(load_image(file)) for file in files]


def write_folder(folder: Path, pictures: Iterable[Tensor]) -> None:
    """Number the pictures, (3, H, W) as in `to_image`, and caption them; the captions come last, when all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, picture in enumerate(pictures):
        to_image(picture).save(folder / f"{i:04d}.png", compress_level=1)
        lines.append(json.dumps({"file_name": f"{i:04d}.png", "text": CAPTIONS[i % len(CAPTIONS)]}))
        if (i + 1) % 200 == 0:
            print(f"{folder}: {i + 1} pictures", flush=True)
    (folder / METADATA).write_text("".join(f"{line}\n" for line in lines))
