"""Files and configurations of strangers: no crash, no hang, no traceback, nothing written elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_run
import fuzz_watch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz_watch.Watched]:
    one = fuzz_watch.Watched(tmp_path_factory.mktemp("fuzz") / "cases")
    yield one
    one.close()


def complain(bad: list[Any]) -> str:
    return "\n\n".join(f"{case!r}\n{verdict}" for case, verdict in bad[:3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"), [("image", 120), ("config", 40), ("model", 40), ("lora", 25), ("lora_header", 40)]
)
def test_some(watched: fuzz_watch.Watched, kind: str, count: int) -> None:
    counts, bad = fuzz_run.drive(kind, count, watched, start=1)
    assert not bad, complain(bad)
    assert counts["injected"] >= count
    assert counts["accepted" if kind == "lora_header" else "refused"] > 0  # odd settings are named, seldom refused


@pytest.mark.faults
@pytest.mark.parametrize("kind", sorted(fuzz_run.FULL))
def test_all(watched: fuzz_watch.Watched, kind: str) -> None:
    counts, bad = fuzz_run.drive(kind, fuzz_run.FULL[kind], watched)
    path = Path(os.environ.get("SMSFF_FUZZ_COUNTS", ROOT / "outputs" / "fuzz.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, kind: counts}, indent=2) + "\n")
    assert not bad, complain(bad)
    assert counts["injected"] >= fuzz_run.FULL[kind]


@pytest.mark.slow
def test_the_watcher_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that reports nothing would make every case a good one."""
    monkeypatch.setattr(fuzz_watch, "work", misbehave)
    watched = fuzz_watch.Watched(tmp_path / "cases", limit=60)
    outcomes = {kind: watched.run(kind, str(tmp_path)) for kind in ("write", "error", "crash", "start", "fine")}
    watched.limit = 0.2
    outcomes |= {kind: watched.run(kind, str(tmp_path)) for kind in ("hang", "spin")}
    watched.close()
    expected = {"error": "error", "crash": "crashed", "hang": "hung", "spin": "hung"}
    for kind, verdict in outcomes.items():
        assert verdict.outcome == expected.get(kind, "accepted")
    assert [kind for kind, verdict in outcomes.items() if verdict.good] == ["fine"]
    assert "stranger" in outcomes["write"].outside[0]
    assert "os.system" in outcomes["start"].outside[0]


def misbehave(pipe: Any, folder: str) -> None:
    """`fuzz_watch.work` with handlers that do what none may do."""
    outside: list[str] = []
    guard = fuzz_watch._Guard(outside)
    sys.addaudithook(guard)
    pipe.send("ready")
    while True:
        kind, case, guard.inside = pipe.recv()
        answer = "accepted"
        if kind == "write":
            Path(case, "stranger").write_text("was here")
        elif kind == "start":
            os.system("true")
        elif kind == "crash":
            os.kill(os.getpid(), 11)
        elif kind == "hang":
            time.sleep(600)
        elif kind == "spin":
            while True:
                pass
        elif kind == "error":
            answer = "error"
        guard.inside = ""
        pipe.send((answer, "", list(outside)))
        outside.clear()
