"""A pickle with a payload, offered wherever a file is read: it is refused, and the payload does not run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from payload import Payload
from torch import nn

from smsff.errors import UserError
from smsff.stylize.export import load_generator_from_checkpoint
from smsff.teacher.lora.load import LoraFile, load_style_loras
from smsff.teacher.stable_diffusion import load_stable_diffusion
from smsff.training.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint


def plain(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def resume(wanted: str, run_dir: Path) -> None:
    found = find_checkpoint(wanted, run_dir)
    assert found is not None
    read_checkpoint(found.path)  # a zip archive with code in it can be whole: then it is reading that refuses


WRITERS = [plain, zipped, legacy]
Write = Callable[[Any, Path], None]


def test_the_payload_works(tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    plain(Payload(tmp_path / "ran"), tmp_path / "a.pt")
    pickle.loads((tmp_path / "a.pt").read_bytes())
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    zipped({"x": Payload(tmp_path / "ran")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["style.safetensors", "style.pt", "style.bin", "style.ckpt"])
def test_as_a_lora(tmp_path: Path, write: Write, name: str) -> None:
    write({"lora_unet_x.lora_up.weight": Payload(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(UserError, match=name):
        load_style_loras(nn.Sequential(nn.Linear(2, 2)), (), [LoraFile(tmp_path / name)])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", [*WRITERS, write_checkpoint])
def test_as_a_checkpoint(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    write({"state_dict": {}, "hyper_parameters": Payload(tmp_path / "ran"), "global_step": 1}, path)
    with pytest.raises(UserError, match=r"^ckpt=.*last\.ckpt: "):
        load_generator_from_checkpoint(path)
    for wanted in ("last", str(path)):
        with pytest.raises(UserError, match=r"last\.ckpt|ckpt_path") as refusal:
            resume(wanted, tmp_path / "run")
        assert ("holds Python code (posix.mkdir)" in str(refusal.value)) == (write in (zipped, write_checkpoint))
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_as_a_part_of_a_base_model(tmp_path: Path, tiny_base: Path, tiny_lora: Path, write: Write, part: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    for weights in (base / part).glob("*.safetensors"):
        weights.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        write({"conv_in.weight": Payload(tmp_path / "ran")}, base / part / name)
    with pytest.raises(Exception, match=r".") as refusal:
        load_stable_diffusion(base=str(base), lora=str(tiny_lora))
    assert not (tmp_path / "ran").exists()
    assert isinstance(refusal.value, UserError), refusal.value
