"""Model folders as a stranger could write them: refused before anything large is built, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smsff.cli import main
from smsff.errors import UserError
from smsff.generator import UNetGenerator
from smsff.stylize.export import load_generator_from_checkpoint, save_stylizer
from smsff.stylize.model_files import build_generator, load_network
from smsff.stylize.stylizer import load_stylizer

TINY = {"widths": [8, 12], "encoder_blocks": [1, 1], "decoder_blocks": [1], "head_width": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_stylizer(UNetGenerator(**TINY), tmp_path / "model")  # type: ignore[arg-type]
    return tmp_path / "model"


def describe(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["generator"]["config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [10**9, 10**9]}, r"generator\.widths\.0=1000000000: must be at least 1 and at most 4,096"),
        ({"widths": [4096] * 8, "encoder_blocks": [64] * 8, "decoder_blocks": [64] * 7}, "parameters; at most 500,000"),
        ({"widths": [8] * 40, "encoder_blocks": [1] * 40, "decoder_blocks": [1] * 39}, "more than 8 entries"),
        ({"encoder_blocks": [10**9, 1]}, r"encoder_blocks\.0=1000000000"),
        ({"encoder_blocks": [-1, 1]}, r"encoder_blocks\.0=-1"),
        ({"widths": []}, "cannot be built"),
        ({"widths": "8"}, r"widths='8': must be"),
        ({"widths": [8.5, 12]}, r"must be"),
        ({"widths": [True, 12]}, r"must be"),
        ({"head_width": None}, "must be int"),
        ({"head_width": float("nan")}, "must be int"),
        ({"head_widht": 8}, "no such key; nearest: head_width"),
    ],
)
def test_a_description_out_of_range_is_refused_at_once(folder: Path, changes: dict[str, Any], message: str) -> None:
    describe(folder, **changes)
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        load_stylizer(folder)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"generator": 1}', '{"generator": {"name": ["UNetGenerator"], "config": {}}}', "\xff", "1" * 5000,
     " " * 1_000_001, '{"generator": {"name": "UNetGenerator", "config": [1]}}',
     '{"generator": {"name": "__init__", "config": {}}}'],
)  # fmt: skip
def test_descriptions_that_are_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: "):
        load_stylizer(folder)


def test_a_network_is_built_without_memory_for_its_weights() -> None:
    large = build_generator(
        "UNetGenerator", {"widths": [512, 512], "encoder_blocks": [8, 8], "decoder_blocks": [8]}, source="x"
    )
    assert all(parameter.is_meta for parameter in large.parameters())


def test_weights_must_be_those_of_the_description(folder: Path) -> None:
    good = load_file(folder / "model.safetensors")
    name = "to_rgb.bias"
    cases = {
        f"1 of {len(good)} tensors are missing, the first is {name}": {k: v for k, v in good.items() if k != name},
        "there is no 'more' in it": {**good, "more": torch.zeros(1)},
        rf"{name} has shape \(4,\), not \(3,\)": {**good, name: torch.zeros(4)},
        rf"{name} is torch.int8, not a floating-point": {**good, name: torch.zeros(3, dtype=torch.int64)},
        f"weights {name} have values that are not finite": {**good, name: torch.tensor([0, float("nan"), 0])},
        f"the weights {name} have": {**good, name: torch.tensor([0, float("inf"), 0]).half()},
    }
    for message, state in cases.items():
        save_file(state, folder / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load_stylizer(folder)
    save_file({k: v.half() for k, v in good.items()}, folder / "model.safetensors")
    assert {p.dtype for p in load_network(folder)[0].parameters()} == {torch.float32}


def test_a_header_that_lies_about_sizes_is_refused_before_anything_is_read(folder: Path) -> None:
    header = {"stem.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}
    for text in (json.dumps(header).encode(), b"{}", b"[" * 1000):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
        with pytest.raises(UserError, match=r"model\.safetensors: "):
            load_stylizer(folder)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_stylizer(folder)


def test_loaded_weights_do_not_hang_on_the_file(folder: Path) -> None:
    network, _ = load_network(folder)
    before = network.stem.weight.sum()  # type: ignore[union-attr]
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(network.stem.weight.sum(), before)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_are_followed_to_files_alone(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "blob")
    (folder / name).symlink_to(tmp_path / "blob")  # as in the cache of a model hub
    load_stylizer(folder)
    for target in ("/dev/zero", str(folder), name):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        with pytest.raises(UserError, match=f"has no {name}"):
            load_stylizer(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"has no {name}"):
        load_stylizer(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "net_G.pth", "x.bin", "model.ckpt", "model.onnx"])
def test_a_pickle_is_refused_and_does_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    path, ran = folder / name, tmp_path / "ran"
    for write in (lambda file: pickle.dump(Payload(ran), file), lambda file: torch.save({"a": Payload(ran)}, file)):
        with path.open("wb") as file:
            write(file)
        for model in {path, folder if name == "model.safetensors" else path}:
            with pytest.raises(UserError, match=name):
                load_stylizer(model)
            assert main(["stylize", str(model), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        with pytest.raises(UserError, match=r"cannot be read as (a checkpoint|tensors)|holds Python code"):
            load_generator_from_checkpoint(path)
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "hyper",
    [
        {"generator": {"name": "os.system", "config": {}}},
        {"generator": {"name": "smsff.generator.unet.UNetGenerator", "config": {"widths": [10**9]}}},
        {"generator": {"name": "smsff.generator.unet.UNetGenerator", "config": "x"}},
        {"generator": {"name": "UNetGenerator", "config": TINY}, "style": "x", "config": 3},
        {"generator": "x"},
        [],
    ],
)
@pytest.mark.parametrize("state", [{}, {"generator.stem.weight": 3}, {"ema.n_averaged": "x"}, [1]])
def test_a_checkpoint_builds_nothing_but_our_networks(tmp_path: Path, hyper: Any, state: Any) -> None:
    torch.save({"hyper_parameters": hyper, "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"ckpt=.*a\.ckpt: "):
        load_generator_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("strange", ["sparse", "meta", "integers"])
def test_a_checkpoint_with_strange_tensors_is_refused(tmp_path: Path, strange: str) -> None:
    state = {f"generator.{k}": v for k, v in UNetGenerator(**TINY).state_dict().items()}  # type: ignore[arg-type]
    changed = state["generator.to_rgb.bias"]
    state["generator.to_rgb.bias"] = {
        "sparse": changed.to_sparse(),
        "meta": changed.to("meta"),
        "integers": changed.long(),
    }[strange]
    hyper = {"generator": {"name": "UNetGenerator", "config": TINY}}
    torch.save({"hyper_parameters": hyper, "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"do not fit the network|cannot be read"):
        load_generator_from_checkpoint(tmp_path / "a.ckpt")


def test_only_pickles_in_a_folder_are_no_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"it has no model\.safetensors"):
        load_stylizer(tmp_path)


def test_a_description_is_short(folder: Path) -> None:
    (folder / "config.json").write_text(" " * 1_000_001 + (folder / "config.json").read_text())
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        load_stylizer(folder)
