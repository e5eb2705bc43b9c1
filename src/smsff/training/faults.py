"""What a fault of the system means to the person at the keyboard: one sentence, what to do, and an exit status.

``docs/reference/reliability.md`` lists the statuses and what is lost with each.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from smsff.errors import RunError

log = logging.getLogger(__name__)

STORAGE = {
    errno.ENOSPC: "there is no room left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EIO: "the device does not answer properly",
    errno.ESTALE: "the file server lost track of it",
}
CPU_MEMORY = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
COLLECTIVE = re.compile(r"connection (?:was )?(?:closed|reset)|broken pipe|time(?:d )?out|NCCL|gloo", re.I)
WORKER = re.compile(r"DataLoader worker \(pid\S* ([^)]*)\)", re.I)
SILENT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")


def explain(error: BaseException, plain: Mapping[str, Any] | None, *, lost: str | None = None) -> RunError | None:
    """The fault behind an exception or one of its causes, or None if it is none of those that are known.

    `plain` is the configuration, if there is one yet; `lost` what is known of a process of this run that is gone.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if fault := _explain_one(cause, plain, lost):
            return fault
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _explain_one(error: BaseException, plain: Mapping[str, Any] | None, lost: str | None) -> RunError | None:
    text = str(error)
    if isinstance(error, RunError):
        return error
    if is_out_of_memory(error):
        return RunError(out_of_memory(text, plain), status=RunError.MEMORY)
    if isinstance(error, OSError) and error.errno in STORAGE:
        name = f"{error.filename}: " if error.filename else ""
        return RunError(f"{name}cannot be written or read: {STORAGE[error.errno]}", status=RunError.STORAGE)
    workers = f"a worker of data.num_workers={_get(plain, 'data.num_workers')}"
    if killed := WORKER.search(text):
        shared = "shm" in text or "shared memory" in text
        remedy = "enlarge /dev/shm or set data.num_workers=0" if shared else "often for want of memory: lower it"
        return RunError(
            f"{workers} was killed (process {killed.group(1)}); {remedy}, and go on with ckpt_path=last",
            status=RunError.PROCESS,
        )
    if silent := SILENT.search(text):
        return RunError(
            f"{workers} gave no batch for data.worker_timeout={float(silent.group(1)):g} s: does the file system of "
            f"data.root={_get(plain, 'data.root')} answer? Go on with ckpt_path=last",
            status=RunError.PROCESS,
        )
    if lost is not None and isinstance(error, (RuntimeError, ConnectionError, TimeoutError)):
        return RunError(f"{lost}; go on with ckpt_path=last", status=RunError.PROCESS)
    exchange = isinstance(error, (RuntimeError, ConnectionError)) and (COLLECTIVE.search(text) or in_exchange(error))
    if exchange and _several(plain):
        return RunError(
            f"another process of this run is gone or did not answer for process_timeout="
            f"{_get(plain, 'process_timeout')} s ({text.strip().splitlines()[0][:200]}); go on with ckpt_path=last",
            status=RunError.PROCESS,
        )
    return None


def in_exchange(error: BaseException) -> bool:
    """Whether an exception came from an exchange between processes: by the innermost frames of its traceback."""
    names = [frame.filename for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    return any(os.path.join("torch", "distributed") in name or name.endswith("distributed.py") for name in names)


def _get(plain: Mapping[str, Any] | None, key: str, default: Any = None) -> Any:
    node: Any = plain or {}
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node


def _several(plain: Mapping[str, Any] | None) -> bool:
    return str(_get(plain, "trainer.devices", 1)) != "1" or _get(plain, "trainer.num_nodes", 1) != 1


# -------------------------------------------------------------------------------------------------------------- memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the GPU or of the machine, was not enough."""
    import torch
    from lightning.pytorch.utilities.memory import is_oom_error

    of_system = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return of_system or isinstance(error, torch.OutOfMemoryError) or is_oom_error(error)


def out_of_memory(text: str, plain: Mapping[str, Any] | None) -> str:
    """The sentence for a failed allocation: what was wanted, and what to change by how much."""
    wanted, on_gpu = CPU_MEMORY.search(text), re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    amount = on_gpu.group(1) if on_gpu else f"{int(wanted.group(1)) / 2**30:.2f} GiB" if wanted else None
    more = f" ({amount} more were wanted)" if amount else ""
    where = "the GPU" if on_gpu or "CUDA" in text else "this machine"
    return f"the memory of {where} is not enough{more}; {'; '.join(remedies(plain, gpu_use()))}"


def gpu_use() -> tuple[float, float, float] | None:
    """Bytes of the GPU: (what stays whatever the batch, the most that was in use, all there is); None without one."""
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    lasting = float(torch.cuda.memory_stats().get("allocated_bytes.all.current", 0))
    return lasting, float(torch.cuda.max_memory_allocated()), float(torch.cuda.mem_get_info()[1])


def largest_batch(batch: int, use: tuple[float, float, float]) -> int:
    """Samples that would fit, if what a batch needs grows with its size: at least 1, and fewer than now."""
    lasting, most, total = use
    for_each = max(most - lasting, 1.0) / batch
    return max(1, min(batch - 1, int(0.9 * (total - lasting) / for_each)))


def remedies(plain: Mapping[str, Any] | None, use: tuple[float, float, float] | None) -> list[str]:
    """What to change, the cheapest first, in the words of the command line.

    Args:
        use: As `gpu_use` gives it at the end of the failed step, when its tensors are free again; None if not known.
    """
    batch, crop = _get(plain, "data.batch_size", 1), _get(plain, "data.crop_size")
    found = []
    if _get(plain, "teacher.gradient_checkpointing") is False:
        found.append("teacher.gradient_checkpointing=true computes again instead of keeping")
    if _get(plain, "teacher.dtype") == "float32" and _get(plain, "trainer.accelerator") != "cpu":
        found.append("teacher.dtype=bfloat16 halves the frozen weights")
    if batch > 1:
        fits = largest_batch(batch, use) if use else batch // 2
        micro = -(-batch // fits) * _get(plain, "trainer.accumulate_grad_batches", 1)
        found.append(f"data.batch_size={fits} trainer.accumulate_grad_batches={micro} for about the same step in parts")
    elif crop:
        found.append(f"data.crop_size={max(64, crop * 3 // 4 // 64 * 64)} needs about half (now {crop})")
    if not found:
        found.append("a smaller picture or network, or a larger machine")
    return found


# ------------------------------------------------------------------------------------------------------------- storage


@contextlib.contextmanager
def going_on(what: str) -> Iterator[None]:
    """Something that a run can do without: if it cannot be written, that is said, and the run goes on."""
    try:
        yield
    except OSError as error:
        log.warning("%s could not be written: %s; the training goes on", what, error.strerror or error)


def tolerate_full_logs() -> None:
    """Log files that cannot be written are named once each; Python prints a traceback for every line of the log."""
    named: set[str] = set()

    def handle(handler: logging.FileHandler, record: logging.LogRecord) -> None:
        error, path = sys.exc_info()[1], handler.baseFilename
        if not isinstance(error, OSError):
            type(handler).handleError(handler, record)
        elif path not in named:
            named.add(path)
            print(f"{path} could not be written: {error.strerror or error}; the training goes on", file=sys.stderr)

    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(handle, handler)  # type: ignore[method-assign]
