"""Cases drawn by hypothesis, run in a watched process, and counted: ``python tests/fuzz/fuzz_run.py --out FILE``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(path) for path in (HERE, HERE.parent, HERE.parent / "teacher") if str(path) not in sys.path]

import fuzz_configs  # noqa: E402
import fuzz_images  # noqa: E402
import fuzz_models  # noqa: E402
from fuzz_watch import Verdict, Watched  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

CASES = {
    "image": fuzz_images.cases,
    "config": fuzz_configs.cases,
    "model": fuzz_models.model_cases,
    "lora": fuzz_models.lora_cases,
    "lora_header": fuzz_models.lora_header_cases,
}
FULL = {"image": 10_000, "config": 1_000, "lora": 500, "lora_header": 2_000, "model": 500}
OUTCOMES = ("accepted", "refused", "error", "crashed", "hung")


Bad = list[tuple[Any, Verdict]]


def drive(kind: str, count: int, watched: Watched, *, start: int = 0) -> tuple[dict[str, Any], Bad]:
    """Run so many cases; returns the counts and the cases that went wrong."""
    outcomes = dict.fromkeys(OUTCOMES, 0)
    bad: Bad = []
    outside = 0
    began = time.monotonic()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES[kind])
    def one(case: Any) -> None:
        nonlocal outside
        verdict = watched.run(kind, case)
        outcomes[verdict.outcome] += 1
        outside += bool(verdict.outside)
        if not verdict.good:
            bad.append((case, verdict))

    one()
    injected = sum(outcomes.values())
    return {"injected": injected, **outcomes, "outside": outside, "seconds": round(time.monotonic() - began)}, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the counts")
    parser.add_argument("--seed", type=int, default=0)
    for kind, count in FULL.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"cases (default {count})")
    arguments = parser.parse_args()
    counts, failures = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(Path(folder) / "fuzz")
        for kind in FULL:
            if not getattr(arguments, kind):
                continue
            counts[kind], bad = drive(kind, getattr(arguments, kind), watched, start=arguments.seed)
            print(kind, counts[kind], flush=True)
            failures += len(bad)
            seen: dict[str, int] = {}
            for case, verdict in bad:
                last = (verdict.detail.strip().splitlines() or [""])[-1]
                seen[last] = seen.get(last, 0) + 1
                if seen[last] <= 2:
                    print(f"{verdict.outcome}: {case!r}\n{verdict.detail}\n{verdict.outside}", flush=True)
        watched.close()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(counts, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
