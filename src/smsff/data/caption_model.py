"""``smsff caption FOLDER``: captions by a captioning model (BLIP, Li et al. 2022) into ``metadata.jsonl``.

A run that was ended goes on where it stopped: images that have a caption are skipped, and lines are added to the file
a whole batch at a time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from smsff.atomic import write_atomically
from smsff.data.captions import METADATA, TABLES, read_captions
from smsff.data.images import ImageError, find_images, load_image, printable
from smsff.device import chosen_device
from smsff.errors import UserError, first_line

BEGINNING = b'{"file_name": "'
"""Of every line that is added."""


def run(arguments: argparse.Namespace) -> int:
    """Caption the folder; the exit status is 0 when all is done, 1 when some pictures could not be read.

    Raises:
        UserError: no folder, no images in it, malformed captions, or no such model.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root = Path(arguments.folder).expanduser()
    images = {image.relative_to(root).as_posix(): image for image in find_images(root)}
    if not images:
        raise UserError(f"{printable(root)}: no images in it or below it")
    _drop_cut_lines(metadata_file(image, root) for image in images.values())
    captioned = read_captions(root, list(images))  # also refuses a malformed file
    print(f"{len(captioned)} of {len(images)} images have captions")
    if arguments.overwrite:
        captioned = {}
    wanted = [image for name, image in images.items() if name not in captioned]
    if not wanted:
        print("nothing to do; --overwrite makes new captions")
        return 0
    captioner = load_captioner(arguments.model, device=arguments.device)
    console = Console(stderr=True, soft_wrap=True)
    failed, size = 0, arguments.batch_size
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    for batch in track(batches, description="captioning", console=console):
        pictures = dict(_read(batch, console))
        failed += len(batch) - len(pictures)
        if pictures:
            texts = captioner(list(pictures.values()), prompt=arguments.prompt, max_words=arguments.max_words)
            append_captions(dict(zip(pictures, texts, strict=True)), root)
    for path in {metadata_file(image, root) for image in wanted}:
        if path.exists():
            _keep_last_lines(path)
    print(f"{len(wanted) - failed} images captioned, {len(captioned)} had captions, {failed} could not be read")
    return 1 if failed else 0


@dataclass(frozen=True)
class Captioner:
    """A BLIP model with its processor."""

    model: Any
    processor: Any

    def __call__(self, pictures: Sequence[Tensor], *, prompt: str = "", max_words: int = 40) -> list[str]:
        """One caption for each picture (3, H, W) uint8, of any sizes; each begins with the prompt."""
        images = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        text = {"text": [prompt] * len(images)} if prompt else {}
        inputs = self.processor(images=images, return_tensors="pt", **text).to(self.model.device)
        with torch.no_grad():
            tokens = self.model.generate(**inputs, max_new_tokens=max_words)
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(one.split()) for one in texts]


def load_captioner(name: str, *, device: str = "auto") -> Captioner:
    """A BLIP model from a folder or the hub; what is on this machine already is not downloaded.

    Raises:
        UserError: no such model, or one of another kind.
    """
    from transformers import AutoConfig, BlipForConditionalGeneration, BlipProcessor

    place = chosen_device(device)
    where: dict[str, Any] = {"local_files_only": True}
    try:
        try:
            config = AutoConfig.from_pretrained(name, **where)
        except OSError:
            if Path(name).is_dir():
                raise
            where = {}
            config = AutoConfig.from_pretrained(name)
        if config.model_type != "blip":
            raise UserError(f"--model {name}: a {config.model_type} model; a BLIP captioning model is needed")
        model, report = BlipForConditionalGeneration.from_pretrained(name, output_loading_info=True, **where)
        processor = BlipProcessor.from_pretrained(name, **where)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"--model {name}: cannot be loaded ({first_line(error, at_most=200)}). "
            "Give the folder of a BLIP captioning model, for example after "
            "`hf download Salesforce/blip-image-captioning-base --local-dir models/blip` where there is a network"
        ) from None
    if any("text_decoder" in key for key in report["missing_keys"]):
        raise UserError(f"--model {name}: has no weights of a caption decoder; a BLIP captioning model is needed")
    return Captioner(model.to(place).eval(), processor)


def metadata_file(image: Path, root: Path) -> Path:
    """The ``metadata.jsonl`` that prevails for an image: beside the nearest table up to the root, else the root's."""
    folder = image.parent
    while folder != root and not any((folder / name).is_file() for name in TABLES):
        folder = folder.parent
    return folder / METADATA


def append_captions(captions: Mapping[Path, str], root: Path) -> None:
    """Add lines to the metadata files; of each file all of them at once, or none."""
    lines: dict[Path, list[str]] = {}
    for image, text in captions.items():
        path = metadata_file(image, root)
        entry = {"file_name": image.relative_to(path.parent).as_posix(), "text": text}
        lines.setdefault(path, []).append(json.dumps(entry, ensure_ascii=False) + "\n")
    for path, new in lines.items():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, "".join(new).encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(images: Iterable[Path], console: Console) -> Iterator[tuple[Path, Tensor]]:
    """The images that can be read; the others are named."""
    for image in images:
        try:
            yield image, load_image(image)
        except ImageError as error:
            console.print(f"skipped {error}", markup=False, highlight=False)


def _drop_cut_lines(paths: Iterable[Path]) -> None:
    """Remove a last line without its end, which a machine that lost power leaves; everything else is left as it is.

    Raises:
        UserError: a file in another encoding than that of the lines that will be added.
    """
    for path in set(paths):
        if not path.is_file():
            continue
        data = path.read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":  # a letter that was cut goes with its line
                raise UserError(f"{printable(path)}: not UTF-8; save it as UTF-8, for lines are added to it") from error
        if not data or data.endswith(b"\n"):
            continue
        last = data.rpartition(b"\n")[2]
        if last[: len(BEGINNING)] != BEGINNING[: len(last)]:
            continue  # not from here: whether it is a caption is found when it is read
        try:
            json.loads(last)
            _replace(path, data + b"\n")  # complete after all: written by hand
        except ValueError:
            _replace(path, data.removesuffix(last))


def _keep_last_lines(path: Path) -> None:
    """Of several lines about one image keep the last, which is the one that counts."""
    lines = {json.loads(line)["file_name"]: line for line in path.read_text("utf-8-sig").split("\n") if line.strip()}
    _replace(path, "".join(f"{line}\n" for line in lines.values()).encode())


def _replace(path: Path, data: bytes) -> None:
    write_atomically(path, lambda aside: aside.write_bytes(data))
