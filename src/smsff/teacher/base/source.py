"""Where a pipeline comes from: a folder, a single file, or the Hugging Face hub.

Every way in which it can be absent ends in one `UserError` that names the config key.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from safetensors import SafetensorError

from smsff.errors import UserError, first_line, shown

T = TypeVar("T")

LOAD_ERRORS = (pickle.UnpicklingError, OSError, ValueError, SafetensorError)
INDEX = "model_index.json"
KINDS = {
    "teacher.vae": "an auto-encoder or a pipeline",
    "baseline.controlnet": "a ControlNet",
    "baseline.image_encoder": "a CLIP image encoder",
}
"""What a key names, if it is no whole pipeline."""
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from.

    Attributes:
        name: a folder, a ``.safetensors`` file or a hub id, as the user wrote it.
        key: the config key that holds it, for messages.
        revision: branch, tag or commit on the hub.
        variant: suffix of the weight files, such as ``fp16``.
        local_files_only: never ask the hub.
    """

    name: str
    key: str
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False

    @property
    def folder(self) -> Path | None:
        """The local folder, None for anything else."""
        path = Path(self.name).expanduser()
        return path if self.name and path.is_dir() else None

    @property
    def file(self) -> Path | None:
        """The single file, None for anything else.

        Raises:
            UserError: for a file that could run code when it is opened, and for a ``.safetensors`` that is not there.
        """
        path = Path(self.name).expanduser()
        if path.is_dir():
            return None
        suffix = path.suffix.lower()
        if suffix in _PICKLES:
            raise UserError(
                f"{self}: {path.suffix} files can run code when they are opened and are not read; "
                "use the .safetensors version of the checkpoint"
            )
        if suffix != ".safetensors":
            return None
        if not path.is_file():
            raise UserError(f"{self}: no such file; download the checkpoint and set {self.key} to where it is")
        return path

    @property
    def location(self) -> str:
        """What the loaders take: the folder, or the hub id."""
        return self.name if self.folder is None else str(self.folder)

    def __str__(self) -> str:
        return f"{self.key}={self.name}"

    def same_as(self, other: Source) -> bool:
        """Whether both name the same weights."""
        if self.name == other.name:
            return True
        paths = [Path(source.name).expanduser() for source in (self, other)]
        return all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve()


def read_json(source: Source, part: str, name: str, *, index: str = INDEX) -> dict[str, Any]:
    """The JSON file `name` in the sub-folder `part` ("" for none) of a folder or a hub repository.

    Args:
        index: as in `local_first`.

    Raises:
        UserError: if it is not there or no settings in JSON.
    """
    path = f"{part}/{name}" if part else name
    if source.folder is not None:
        file = source.folder / path
    else:
        _refuse_impossible_id(source)

        def download(*, local_files_only: bool, subfolder: str, revision: str | None) -> str:
            return hf_hub_download(source.name, path, revision=revision, local_files_only=local_files_only)

        file = Path(local_first(source, path, download, index=index))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(absent(source, f"its {path} cannot be read ({first_line(error, at_most=200)})")) from None
    if not isinstance(content, dict):
        raise UserError(absent(source, f"its {path} holds no settings, but {shown(content)}"))
    return content


def local_first(source: Source, part: str, load: Callable[..., T], *, index: str = INDEX) -> T:
    """`load` from the folder or the hub's cache; only what is not there is asked of the hub.

    Args:
        index: a file that the hub has if it has the repository.
    """
    where = {"subfolder": part, "revision": source.revision}
    try:
        return load(local_files_only=True, **where)
    except LOAD_ERRORS as error:
        if source.folder is not None or source.local_files_only:
            raise UserError(absent(source, f"its {part} cannot be read ({first_line(error, at_most=200)})")) from None
    _ask_hub(source, index)
    try:
        return load(local_files_only=False, **where)
    except LOAD_ERRORS as error:
        raise UserError(absent(source, f"its {part} cannot be fetched ({first_line(error, at_most=200)})")) from None


def absent(source: Source, reason: str) -> str:
    """The message for weights that are not there: `reason`, and what to do."""
    known = source.folder is None and source.name.count("/") == 1
    fetch = source.name if known else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    what = KINDS.get(source.key, "a Stable Diffusion pipeline")
    return (
        f"{source}: {reason}. Give the folder of {what} in the layout of diffusers, a single "
        f".safetensors file, or an id on the hub. Where there is a network, run `smsff fetch` with the overrides of "
        f"this command, or `hf download {fetch} --local-dir models/base` and set {source.key}=models/base"
    )


def _refuse_impossible_id(source: Source) -> None:
    if source.name.count("/") > 1 or source.name.startswith((".", "/", "~")) or "\\" in source.name or not source.name:
        raise UserError(absent(source, "there is no such folder"))


def _ask_hub(source: Source, index: str) -> None:
    """One request without retries, so that a machine without network learns of it at once."""
    try:
        get_hf_file_metadata(hf_hub_url(source.name, index, revision=source.revision), timeout=10)
    except Exception as error:  # the hub's client raises errors of its HTTP library, which differ between versions
        reason = f"no such folder, and the Hugging Face hub does not give it either ({first_line(error, at_most=200)})"
        raise UserError(absent(source, reason)) from None
