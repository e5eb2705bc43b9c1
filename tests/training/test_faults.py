from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from smsff.errors import RunError
from smsff.training import faults
from smsff.training.faults import explain, going_on, largest_batch, remedies

PLAIN: dict[str, Any] = {
    "process_timeout": 60,
    "trainer": {"devices": 2, "accelerator": "gpu", "accumulate_grad_batches": 1},
    "data": {"batch_size": 8, "crop_size": 512, "num_workers": 4},
    "teacher": {"dtype": "float32", "gradient_checkpointing": False},
}


def without_memory() -> BaseException:
    try:
        torch.empty(1 << 50)
    except RuntimeError as error:
        return error
    raise AssertionError("so much memory there is not")


def wrapped(error: BaseException) -> BaseException:
    try:
        raise RuntimeError("something on top") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (without_memory(), 5, ["this machine", "4194304.00 GiB", "data.batch_size=4 trainer"]),
        (MemoryError(), 5, ["this machine"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB."), 5, ["the GPU", "2.50 GiB"]),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, ["memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 3, ["/a/b", "no room"]),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 3, ["/a/b", "no permission"]),
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4"), 4, ["60 s"]),
        (RuntimeError("DataLoader timed out after 5.0 seconds"), 4, ["data.num_workers=4", "worker_timeout=5 s"]),
        (RuntimeError("Timed out waiting 60000ms for recv operation to complete"), 4, ["process_timeout=60"]),
        (torch.distributed.DistBackendError("NCCL error"), 4, ["another process"]),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            4,
            ["data.num_workers=4", "12, 13", "lower it"],
        ),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. insufficient shared memory (shm)"), 4,
         ["/dev/shm"]),
        (RunError("said already", status=1), 1, ["said already"]),
    ],
)  # fmt: skip
def test_known_faults_are_one_sentence_with_a_status(error: BaseException, status: int, words: list[str]) -> None:
    for one in (error, wrapped(error)):
        fault = explain(one, PLAIN)
        assert fault is not None
        assert fault.status == status
        assert "\n" not in str(fault)
        assert all(word in str(fault) for word in words), str(fault)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("y"), RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "gone")]
)
def test_unforeseen_errors_keep_their_traceback(error: Exception) -> None:
    assert explain(error, PLAIN) is None
    assert explain(error, None) is None


def test_a_lost_process_explains_what_follows_from_it_and_one_process_loses_none() -> None:
    fault = explain(RuntimeError("anything"), PLAIN, lost="process 1 of this run was ended by SIGKILL")
    assert fault is not None
    assert str(fault).startswith("process 1 of this run was ended by SIGKILL")
    single = {**PLAIN, "trainer": {"devices": 1, "num_nodes": 1}}
    assert explain(RuntimeError("Connection closed by peer"), single) is None


def test_the_batch_that_fits_follows_from_what_one_sample_needs() -> None:
    # 10 stay, 8 samples took 64 more: 8 each; of 50 there are 36 (nine tenths of 40) left for samples.
    assert largest_batch(8, (10.0, 74.0, 50.0)) == 4
    assert largest_batch(2, (10.0, 74.0, 12.0)) == 1
    assert largest_batch(8, (10.0, 11.0, 1000.0)) == 7  # it did not fit, whatever the figures say


def test_remedies_name_keys_that_are_not_used_yet() -> None:
    first = "; ".join(remedies(PLAIN, None))
    assert "teacher.gradient_checkpointing=true" in first
    assert "teacher.dtype=bfloat16" in first
    assert "data.batch_size=4 trainer.accumulate_grad_batches=2" in first
    measured = "; ".join(remedies(PLAIN, (10.0, 74.0, 30.0)))
    assert "data.batch_size=2 trainer.accumulate_grad_batches=4" in measured
    small = {
        "teacher": {"dtype": "bfloat16", "gradient_checkpointing": True},
        "data": {"batch_size": 1, "crop_size": 512},
    }
    assert remedies(small, None) == ["data.crop_size=384 needs about half (now 512)"]
    assert remedies({}, None) == ["a smaller picture or network, or a larger machine"]


def test_what_a_run_can_do_without_is_only_reported(caplog: pytest.LogCaptureFixture) -> None:
    with going_on("a picture"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "a picture could not be written: No space left on device; the training goes on" in caplog.text
    with pytest.raises(ValueError, match="a bug"), going_on("a picture"):
        raise ValueError("a bug")


def test_without_a_gpu_nothing_is_said_of_its_use() -> None:
    if not torch.cuda.is_available():
        assert faults.gpu_use() is None


def test_an_exchange_between_processes_is_known_by_where_it_failed() -> None:
    with pytest.raises(ValueError, match="process group") as caught:
        torch.distributed.barrier()
    assert faults.in_exchange(caught.value)
    with pytest.raises(ValueError, match="int") as caught:
        int("x")
    assert not faults.in_exchange(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk here that is always full")
def test_a_log_file_that_cannot_be_written_is_named_once_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.FileHandler("/dev/full")
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        faults.tolerate_full_logs()
        for _ in range(3):
            logger.warning("words")
        handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    finally:
        logger.removeHandler(handler)
        with pytest.raises(OSError, match="No space left"):
            handler.close()
    said = capfd.readouterr().err
    assert said.count("/dev/full could not be written: No space left on device; the training goes on") == 1
    assert "OSError" not in said
    assert said.count("TypeError") == 1  # a mistake of ours keeps its traceback
