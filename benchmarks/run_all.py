"""All benchmarks of speed and memory, one process each, with their figures as JSON in one folder: `make bench`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "startup",
    "memory",
    "launches",
    "data_loading",
    "train_step",
    "generators",
    "exports",
    "mixed_adapters",
    "fidelity",
    "scaling",
)


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all of them ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of the JSON files")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that they run")
    args = parser.parse_args(words)
    failed = []
    for name in args.only:
        start = time.perf_counter()
        command = [sys.executable, str(HERE / f"{name}.py"), "--turns", "5"]
        command += ["--out", str(args.out / f"{name}.json")]
        status = subprocess.run(command + ["--quick"] * args.quick, check=False).returncode
        print(
            f"{name}: {'done' if status == 0 else f'FAILED ({status})'} in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        failed += [name] * (status != 0)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
