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
    """One file, or one model folder of the hub, as its authors published it.

    Attributes:
        key: Its name in ``--weights KEY=PATH`` and in results.
        name: File name, or hub id.
        source: Where to get it.
        size: Bytes; of a model of the hub the published size, rounded.
        sha256: Of the file; None where not known for certain, and for models of the hub.
        licence: As its authors state it; None where not known for certain.
        hub: Whether it is a model of the hub (a folder).
    """

    key: str
    name: str
    source: str
    size: int
    sha256: str | None = None
    licence: str | None = None
    hub: bool = False

    @property
    def local_name(self) -> str:
        """Its name in a folder of the user."""
        return self.name.split("/")[-1]


PUBLISHED = {
    file.key: file
    for file in (
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
            licence="MIT",
        ),
        NetworkFile(
            key="clip",
            name="openai/clip-vit-base-patch32",
            source="https://huggingface.co/openai/clip-vit-base-patch32",
            size=605_000_000,
            hub=True,
        ),
        NetworkFile(
            key="pickscore",
            name="yuvalkirstain/PickScore_v1",
            source="https://huggingface.co/yuvalkirstain/PickScore_v1",
            size=3_940_000_000,
            hub=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network that is there.

    Attributes:
        file: What it should be.
        path: File, or model folder.
        sha256: Of the file; of a folder, of its largest file.
    """

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
    if file.hub:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(file.name, "config.json")
        return [*places, Path(cached).parent] if isinstance(cached, str) else places
    import torch

    return [*places, Path(torch.hub.get_dir(), "checkpoints", file.name)]


def parse_paths(options: Sequence[str]) -> dict[str, Path]:
    """``KEY=PATH`` of the command line.

    Raises:
        UserError: not of that form, an unknown key, or nothing there.
    """
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
    if key in paths:
        return Found(file=file, path=paths[key], sha256=_fingerprint(paths[key], file))
    for path in candidates(file):
        if path.exists():
            found = Found(file=file, path=path, sha256=_fingerprint(path, file))
            if found.published is False:
                raise MissingNetworkError(
                    f"{path} is not the published file ({path.stat().st_size:,} bytes instead of {file.size:,}, or "
                    f"another SHA-256 than {file.sha256}): remove it and get it again from {file.source}, or name it "
                    f"with --weights {key}={path} if that is what you want"
                )
            return found
    raise MissingNetworkError(missing_sentence(file))


def missing_sentence(file: NetworkFile) -> str:
    """One sentence: name, size, source, hash, and where to put it."""
    if file.hub:
        return (
            f"the model {file.name} is not here (about {spell_size(file.size)}, {file.source}, no hash recorded): fill "
            f"the local cache with `hf download {file.name}`, or name its folder with --weights {file.key}=DIR or put "
            f"it as {file.local_name} into the folder of the environment variable {FOLDER}"
        )
    place = candidates(file)[-1].parent
    return (
        f"the file {file.name} is not here ({spell_size(file.size)}, {file.source}, SHA-256 {file.sha256}): put it "
        f"into {place} or the folder of the environment variable {FOLDER}, or name it with --weights {file.key}=FILE"
    )


def _fingerprint(path: Path, file: NetworkFile) -> str:
    """SHA-256 of a file, or of the largest file of a model folder."""
    if not file.hub:
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
