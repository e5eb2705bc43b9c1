"""How long the commands take to begin, each in a process of its own, and which heavy packages they have loaded by then.

The time is that of the process on the CPU, which other work on the machine does not lengthen; on an idle machine with
files in the cache the wall clock shows nearly the same.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import arguments, parser, spread, write

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "lightning", "diffusers", "transformers", "peft")
COMMANDS = {
    "python train.py --help": ["train.py", "--help"],
    "python train.py stlye=demo_oil (a wrong key)": ["train.py", "stlye=demo_oil"],
    "python export.py --help": ["export.py", "--help"],
    "smsff --help": ["-m", "smsff.cli", "--help"],
    "smsff stylize --help": ["-m", "smsff.cli", "stylize", "--help"],
    "import smsff": ["-c", "import smsff"],
}


def run(words: Sequence[str]) -> tuple[float, list[str]]:
    """CPU seconds of the process, and the heavy packages that it imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONPROFILEIMPORTTIME": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, [name for name in HEAVY if name in imported]


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(parser(__doc__ or "", turns=5), words)
    chosen = dict(list(COMMANDS.items())[:1]) if args.quick else COMMANDS
    found: dict[str, Any] = {}
    runs: dict[str, list[tuple[float, list[str]]]] = {name: [] for name in chosen}
    for turn in range(args.turns + (0 if args.quick else 1)):
        for name, command in chosen.items():
            one = run(command)
            if turn or args.quick:
                runs[name].append(one)
    for name, all_of in runs.items():
        found[name] = {"seconds": spread([seconds for seconds, _ in all_of]), "heavy_imports": all_of[0][1]}
    return write(args, {"commands": found})


if __name__ == "__main__":
    main()
