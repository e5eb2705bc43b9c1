"""Memory that stays between tiles: fewer pages are cleared, and all of it goes back afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smsff.stylize import heap

SCRIPT = """
import ctypes, resource, sys
from contextlib import nullcontext
import psutil, torch
from smsff.stylize.heap import kept

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: psutil.Process().memory_info().rss
ctypes.CDLL(None).mallopt(-3, 2**20)  # all large blocks go back at once, as they may, by chance, without it
torch.ones(2**20)  # what it loads the first time does not count
for end in sys.argv[1:]:
    before, start = resident(), faults()
    try:
        with nullcontext() if end == "usual" else kept():
            for _ in range(30):  # four maps of 25 MB at a time
                maps = [torch.ones(6 * 2**20) for _ in range(4)]
                del maps
            count, within = faults() - start, resident() - before
            assert end != "badly"
    except AssertionError:
        pass
    print(count, within, resident() - before)
"""

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
always_huge = HUGE.is_file() and "[always]" in HUGE.read_text()
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or always_huge, reason="no mallopt, or huge pages")


def measured(*ends: str, **environment: str) -> list[list[int]]:
    """For each end: page faults of thirty tiles, and what is resident within and afterwards, bytes beyond the start."""
    command = [sys.executable, "-c", SCRIPT, *ends]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return [list(map(int, line.split())) for line in done.stdout.splitlines()]


@on_glibc
def test_pages_are_cleared_once_and_given_back_at_the_end(monkeypatch: Any) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    usual, *kept = measured("usual", "well", "badly")
    assert usual[0] > 700_000
    assert len(kept) == 2
    for count, within, after in kept:
        assert count < 200_000
        assert within > 100e6
        assert after < 20e6


@on_glibc
def test_parameters_that_the_environment_sets_are_left_alone() -> None:
    ((count, within, _),) = measured("well", MALLOC_TRIM_THRESHOLD_="1000000")
    assert count > 700_000
    assert within < 20e6


def test_other_systems_are_left_alone(monkeypatch: Any) -> None:
    heap.glibc.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with heap.kept():
        assert heap.glibc() is None
        assert float(torch.ones(3).sum()) == 3
    heap.glibc.cache_clear()
