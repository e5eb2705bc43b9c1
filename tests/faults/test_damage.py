"""Checkpoints that are damaged, or want to run code."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import Record, one_sentence
from payload import Payload
from runner import Training, struck
from same_run import assert_bit_equal, content

pytestmark = pytest.mark.faults


def damaged(path: Path, kind: str, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        os.truncate(path, draw.randrange(len(data)))
    elif kind == "corrupted":
        for _ in range(8):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    elif kind == "overwritten":
        path.write_bytes(draw.randbytes(len(data)))
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["truncated", "corrupted"])
def test_a_damaged_checkpoint_is_passed_over(
    kind: str, seed: int, stopped: Path, whole: Path, tmp_path: Path, record: Record
) -> None:
    run, draw = tmp_path / "run", random.Random(seed)
    shutil.copytree(stopped, run)
    damaged(run / "checkpoints" / "last.ckpt", kind if seed else {"truncated": "empty"}.get(kind, "overwritten"), draw)
    training = Training(run, "ckpt_path=last")
    assert training.ended() == 0, training.text()
    assert "ckpt_path=last: passed over" in training.text()
    assert "going on from" in training.text()
    assert (run / "checkpoints" / "last.ckpt.damaged").exists()
    assert_bit_equal(run, whole)
    record(
        "`last.ckpt` is truncated or corrupted",
        happened="named and renamed; resumes from the one before",
        lost="steps since the one before",
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was ended in the middle."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    training = struck(signal.SIGTERM, run, at=lambda one: one.steps >= 18)
    assert training.ended() == 143, training.text()
    return training.folder


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_checkpoint_that_wants_to_run_code(kind: str, stopped: Path, tmp_path: Path, record: Record) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    evil = {**content(stopped), "callbacks": Payload(mark)}
    if kind == "torch":
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Payload(mark)}))
    message = one_sentence(Training(tmp_path / "run", f"ckpt_path={path}"), 2)
    assert "holds Python code" in message or "no checkpoint" in message
    assert not mark.exists()
    record(
        "A checkpoint with a pickle payload",
        happened="status 2; the payload does not run",
        lost="nothing",
    )
