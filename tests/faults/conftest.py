"""The server that forks trainings, a run that nothing happened to, and the counts of what was done to the others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import runner
from runner import ROOT, Training

Record = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    runner.prepare()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run to which nothing happened."""
    training = Training(tmp_path_factory.mktemp("reference") / "whole")
    assert training.ended() == 0, training.text()
    return training.folder


def errors(training: Training) -> list[str]:
    """The lines in which a training says what ended it."""
    return [line for line in training.text().splitlines() if line.startswith("error: ")]


def one_sentence(training: Training, status: int) -> str:
    """The only message of a training that ended with this status."""
    assert training.ended() == status, training.text()
    assert "Traceback" not in training.text()
    (message,) = errors(training)
    return message


COUNTS: dict[str, dict[str, Any]] = {}
FAILED: list[str] = []


@pytest.fixture(scope="session")
def record() -> Record:
    """``record(fault, happened=..., lost=...)`` counts one fault that ended as it should, for the table of the docs."""

    def one(fault: str, *, happened: str, lost: str) -> None:
        row = COUNTS.setdefault(fault, {"injected": 0, "as_promised": 0, "happened": happened, "lost": lost})
        row["injected"] += 1
        row["as_promised"] += 1

    return one


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and "tests/faults/" in report.nodeid:
        FAILED.append(report.nodeid.rpartition("::")[2])


def pytest_sessionfinish() -> None:
    """Write what was counted; a test that failed is a row of its own, and nothing is left out."""
    if not COUNTS and not FAILED:
        return
    for name in FAILED:
        COUNTS[f"`{name}`"] = {"injected": 1, "as_promised": 0, "happened": "the test failed", "lost": "see the test"}
    path = Path(os.environ.get("SMSFF_FAULT_COUNTS", ROOT / "outputs" / "faults.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(COUNTS, indent=2) + "\n")
