from __future__ import annotations

import subprocess
import sys
import time

import pytest
from patience import Patience, held_up


def test_sleeping_counts_and_waiting_for_a_processor_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, now = 0.0, 100.0
    monkeypatch.setattr("patience.held_up", lambda pid: waited)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(1, 10)
    assert patience.left() == 10
    now += 8
    assert patience.left() == 2
    waited += 7
    assert patience.left() == 9
    now += 9
    assert patience.left() == 0
    waited = 0.0  # the process is gone
    assert patience.left() == 0


def test_what_the_system_says_of_a_process_grows_and_of_none_is_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert held_up(process.pid) >= 0
        process.communicate(b"\n")
    assert held_up(process.pid) == 0
