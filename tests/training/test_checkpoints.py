"""Checkpoint files: whole or not at all, damaged ones are found out, code is refused."""

from __future__ import annotations

import json
import logging
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from smsff.errors import UserError
from smsff.training import checkpoints
from smsff.training.callbacks.checkpoint_io import SafeCheckpointIO
from smsff.training.checkpoints import damage, find_checkpoint, read_checkpoint, report_found, write_checkpoint


def content(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.arange(1000.0) + step}}


def written(path: Path, step: int = 1) -> Path:
    write_checkpoint(content(step), path)
    return path


def test_what_is_written_is_read_back_and_the_manifest_can_be_read_without_torch(tmp_path: Path) -> None:
    path = written(tmp_path / "new" / "last.ckpt", 7)
    for mmap in (False, True):
        back = read_checkpoint(path, mmap=mmap)
        assert torch.equal(back["state_dict"]["weight"], content(7)["state_dict"]["weight"])
    comment = json.loads(zipfile.ZipFile(path).comment)
    assert comment["step"] == 7
    assert comment["format"] == 1
    assert comment["torch"] == torch.__version__
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["global_step"] == 7  # a plain torch file for everybody else


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_found(tmp_path: Path, length: float) -> None:
    path = written(tmp_path / "a.ckpt")
    size = path.stat().st_size
    os.truncate(path, int(length if isinstance(length, int) else length * size))
    assert damage(path) in ("empty", "truncated, or no checkpoint", "damaged: its manifest cannot be read")


def test_checkpoints_from_before_the_manifest_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(content(3), path)
    assert damage(path) is None
    assert read_checkpoint(path)["global_step"] == 3
    data = path.read_bytes()
    at = data.index(content(3)["state_dict"]["weight"].numpy().tobytes()[:64])
    path.write_bytes(data[: at + 9] + b"\xff" + data[at + 10 :])
    assert "damaged in" in str(damage(path))


def test_a_newer_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    path = written(tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert "newer than this one" in str(damage(path))


@pytest.mark.parametrize("data", [b"", b"abc" * 1000, b"PK\x03\x04" + bytes(100)])
def test_files_of_other_kinds_are_user_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    torch.save([1], path)
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(path)


def test_the_writer_keeps_the_former_ones_and_only_so_many(tmp_path: Path) -> None:
    io, last = SafeCheckpointIO(keep=2), tmp_path / "last.ckpt"
    for step in (10, 20, 30, 40, 40):
        io.save_checkpoint(content(step), last)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step_000020.ckpt", "step_000030.ckpt"]
    for path, step in ((last, 40), (tmp_path / "step_000030.ckpt", 30)):
        assert damage(path) is None
        assert io.load_checkpoint(path)["global_step"] == step
    none = SafeCheckpointIO(keep=0)
    none.save_checkpoint(content(50), last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    io, last = SafeCheckpointIO(keep=2), tmp_path / "last.ckpt"
    io.save_checkpoint(content(10), last)
    os.link(last, tmp_path / "step_000010.ckpt")  # killed after the former one got its second name
    (tmp_path / "last.ckpt.part").write_bytes(b"half")
    (tmp_path / "step_000005.ckpt.part").write_bytes(b"half")
    io.save_checkpoint(content(20), last)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step_000010.ckpt"]
    assert read_checkpoint(tmp_path / "step_000010.ckpt")["global_step"] == 10
    assert read_checkpoint(last)["global_step"] == 20


def test_without_hard_links_the_former_one_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    io, last = SafeCheckpointIO(keep=1), tmp_path / "last.ckpt"
    for step in (10, 20):
        io.save_checkpoint(content(step), last)
    assert io.load_checkpoint(tmp_path / "step_000010.ckpt")["global_step"] == 10


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_leaves_the_former_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    io, last = SafeCheckpointIO(keep=0), tmp_path / "last.ckpt"
    io.save_checkpoint(content(10), last)
    before = last.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    io.save_checkpoint(content(20), last)
    monkeypatch.undo()
    assert last.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert "No space left on device; the former checkpoint stands" in caplog.text
    assert io.failure is not None
    io.remove_checkpoint(last)  # what Lightning would do next, believing that there is a new one
    assert last.exists()
    io.save_checkpoint(content(20), last)
    assert io.failure is None
    io.remove_checkpoint(last)
    assert not last.exists()


def test_last_is_the_newest_intact_one_and_says_what_it_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, io = tmp_path / "run", SafeCheckpointIO(keep=3)
    folder = run / "checkpoints"
    for step in (10, 20, 30, 40):
        io.save_checkpoint(content(step), folder / "last.ckpt")
    found = find_checkpoint("last", run)
    assert found is not None
    assert found.path == (folder / "last.ckpt").resolve()
    assert not found.passed_over

    os.truncate(folder / "last.ckpt", 100)
    data = bytearray((folder / "step_000030.ckpt").read_bytes())
    data[1000] ^= 255
    (folder / "step_000030.ckpt").write_bytes(data)
    found = find_checkpoint("last", run)
    assert found is not None
    assert found.path == (folder / "step_000020.ckpt").resolve()
    assert [path.name for path in found.passed_over] == ["last.ckpt", "step_000030.ckpt"]
    with caplog.at_level(logging.WARNING):
        report_found(found, run)
    assert "passed over" in caplog.text
    assert "last.ckpt (truncated" in caplog.text
    assert "going on from" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == [
        "last.ckpt.damaged",
        "step_000010.ckpt",
        "step_000020.ckpt",
        "step_000030.ckpt.damaged",
    ]
    for path in folder.glob("*.ckpt"):
        os.truncate(path, 50)
    with pytest.raises(UserError, match="none of the 2 checkpoints is intact"):
        find_checkpoint("last", run)


def test_last_is_of_the_folder_itself_or_else_of_a_run_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "c"
    assert find_checkpoint(None, run) is None
    with pytest.raises(UserError, match="ckpt_path=last"):
        find_checkpoint("last", run)
    with pytest.raises(UserError, match=r"ckpt_path=.*no such file"):
        find_checkpoint(str(tmp_path / "x.ckpt"), run)
    beside = [written(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("b/0", "a")]
    found = find_checkpoint("last", run)
    assert found is not None
    assert found.path == beside[1]
    # Of the folder itself even if it is older.
    own = tmp_path / "own.ckpt"
    os.replace(beside[0], own)
    written(beside[0])
    (run / "checkpoints").mkdir(parents=True)
    os.replace(own, run / "checkpoints" / "last.ckpt")
    found = find_checkpoint("last", run)
    assert found is not None
    assert found.path == run / "checkpoints" / "last.ckpt"
    found = find_checkpoint(str(beside[0]), run)
    assert found is not None
    assert found.path == beside[0]
    os.truncate(beside[0], 10)
    with pytest.raises(UserError, match=r"ckpt_path=.*cannot be read as a checkpoint: truncated"):
        find_checkpoint(str(beside[0]), run)


def test_whatever_is_changed_in_a_file_is_found_without_another_error(tmp_path: Path) -> None:
    path, draw = written(tmp_path / "a.ckpt"), random.Random(0)
    whole = path.read_bytes()
    end = len(whole) - len(zipfile.ZipFile(path).comment) - 2
    for number in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 20) if number % 2 else 1):
            data[draw.randrange(end)] ^= 1 << draw.randrange(8)
        path.write_bytes(data if data != whole else whole[:-1])
        assert damage(path) is not None
        with pytest.raises(UserError, match=r"ckpt_path=.*a\.ckpt: cannot be read as a checkpoint"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert damage(path) is None
