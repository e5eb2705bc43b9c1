"""The pretrained networks of the metrics: which file each is, where it is looked for, what is said if it is missing.

Nothing is downloaded here. A file is taken from where the user says it is, from the folder in the environment variable
``SMSFF_METRICS``, from torch's cache (``TORCH_HOME``) or from the local cache of the Hugging Face hub (``HF_HOME``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smsff.errors import UserError
from smsff.weights.files import file_sha256, spell_size

FOLDER = "SMSFF_METRICS"
"""Environment variable: a folder with the files under their usual names."""


@dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """One file, or one model of the Hugging Face hub, as its authors published it.

    `key` is its name in ``--weights KEY=PATH``, `name` the file name or hub id; the size of a model is rounded.
    """

    key: str
    name: str
    size: int
    source: str | None = None
    sha256: str | None = None

    @property
    def local_name(self) -> str:
        """Its name in a folder of the user."""
        return self.name.split("/")[-1]


_FILES = (
    NetworkFile(
        key="alexnet",
        name="alexnet-owt-7be5be79.pth",
        source="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        size=244_408_911,
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    NetworkFile(
        key="inception",
        name="weights-inception-2015-12-05-6726825d.pth",
        source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    NetworkFile(
        key="art_inception",
        name="art_inception.pth",
        source="https://huggingface.co/matthias-wright/art_inception/resolve/main/art_inception.pth",
        size=107_935_977,
        sha256="5bc1c20380401911d99d528b7b6e4430044b56edd5f7f26467222f3fb7c54e7e",
    ),
    NetworkFile(key="clip", name="openai/clip-vit-base-patch32", size=605_000_000),
    NetworkFile(key="pickscore", name="yuvalkirstain/PickScore_v1", size=3_940_000_000),
)
PUBLISHED = {file.key: file for file in _FILES}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network that is there; the hash of a model folder is that of its largest file."""

    file: NetworkFile
    path: Path
    sha256: str

    @property
    def published(self) -> bool | None:
        """Whether it is the published file; None where its hash is not known."""
        return None if self.file.sha256 is None else self.sha256 == self.file.sha256


class MissingNetworkError(UserError):
    """A network is not there; one sentence says what it is, where to get it and where to put it."""


def candidates(file: NetworkFile) -> list[Path]:
    """The places where a network is looked for, in this order, beside the one that the user names."""
    folder = os.environ.get(FOLDER)
    places = [Path(folder).expanduser() / file.local_name] if folder else []
    if file.source is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(file.name, "config.json")
        return [*places, Path(cached).parent] if isinstance(cached, str) else places
    import torch

    return [*places, Path(torch.hub.get_dir(), "checkpoints", file.name)]


def parse_paths(options: Sequence[str]) -> dict[str, Path]:
    """``KEY=PATH`` of the command line; UserError for another form, an unknown key, or a path where nothing is."""
    paths = {}
    for option in options:
        key, separator, path = option.partition("=")
        if not separator or key not in PUBLISHED:
            raise UserError(f"--weights {option}: expected KEY=PATH, with one of the keys {', '.join(PUBLISHED)}")
        paths[key] = Path(path).expanduser()
        if not paths[key].exists():
            raise UserError(f"--weights {option}: there is nothing at {path}")
    return paths


def find(key: str, paths: Mapping[str, Path]) -> Found:
    """The network with this key.

    Args:
        paths: Places that the user names, by key; what is there is taken even if it is not the published file.

    Raises:
        MissingNetworkError: it is nowhere, or a file of this name is another one (a download that broke off).
    """
    file = PUBLISHED[key]
    path = paths.get(key) or next((place for place in candidates(file) if place.exists()), None)
    if path is None:
        raise MissingNetworkError(missing_sentence(file))
    found = Found(file=file, path=path, sha256=_fingerprint(path, file))
    if found.published is False and key not in paths:
        raise MissingNetworkError(
            f"{path} is not the published file ({path.stat().st_size:,} bytes instead of {file.size:,}, or another "
            f"SHA-256 than {file.sha256}): remove it and get it again from {file.source}, or name it with "
            f"--weights {key}={path} if that is what you want"
        )
    return found


def missing_sentence(file: NetworkFile) -> str:
    """One sentence: name, size, source, hash, and where to put it."""
    if file.source is None:
        return (
            f"the model {file.name} is not here (about {spell_size(file.size)}, https://huggingface.co/{file.name}, no "
            f"hash recorded): fill the local cache with `hf download {file.name}`, or name its folder with --weights "
            f"{file.key}=DIR or put it as {file.local_name} into the folder of the environment variable {FOLDER}"
        )
    place = candidates(file)[-1].parent
    return (
        f"the file {file.name} is not here ({spell_size(file.size)}, {file.source}, SHA-256 {file.sha256}): put it "
        f"into {place} or the folder of the environment variable {FOLDER}, or name it with --weights {file.key}=FILE"
    )


def _fingerprint(path: Path, file: NetworkFile) -> str:
    """SHA-256 of a file, or of the largest file of a model folder."""
    if file.source is not None:
        if not path.is_file():
            raise UserError(f"--weights {file.key}={path}: expected a file such as {file.name}")
        return file_sha256(path)
    if not (path / "config.json").is_file():
        raise UserError(f"--weights {file.key}={path}: expected a model folder with config.json, weights and tokenizer")
    weights = [entry for entry in path.iterdir() if entry.suffix in (".safetensors", ".bin") and entry.is_file()]
    if not weights:
        raise UserError(f"{path}: there are no weights (.safetensors or .bin) in this model folder")
    # Of several formats transformers reads safetensors.
    return file_sha256(max(weights, key=lambda entry: (entry.suffix == ".safetensors", entry.stat().st_size)))
