"""Taking turns: how the benchmarks compare things on a machine that does other work too.

Times by themselves mean little there. So the candidates take turns within one process, and the figure is the ratio
within a turn: median, smallest and largest over at least five turns after one that is not counted. With one thread on
the CPU the clock is the CPU time of the process, which leaves out what other processes take; with more threads or a
GPU it is the wall clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Turn = Mapping[str, float]
LEAST = 5
"""A median of fewer turns says nothing."""


def clock(threads: int, device: str) -> tuple[str, Callable[[], float]]:
    """Name of the clock and the clock."""
    if device == "cpu" and threads == 1:
        return "CPU time of the process", time.process_time
    return "wall clock", time.perf_counter


def take_turns(
    candidates: Mapping[str, Callable[[], object]], *, turns: int, threads: int, device: str = "cpu"
) -> list[dict[str, float]]:
    """Seconds of each candidate in each turn, after one that is not counted; the order moves on from turn to turn."""
    _, now = clock(threads, device)
    names, found = list(candidates), []
    for turn in range(turns + 1):
        seconds = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if device != "cpu":
                torch.cuda.synchronize()
            start = now()
            candidates[name]()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name] = now() - start
        found.append(seconds)
    return found[1:]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(turns: Sequence[Turn], slow: str, fast: str) -> dict[str, float]:
    """How many times faster one candidate is than another, turn by turn."""
    return spread([turn[slow] / turn[fast] for turn in turns])


def summary(turns: Sequence[Turn]) -> dict[str, dict[str, float]]:
    """Seconds of each candidate."""
    return {name: spread([turn[name] for turn in turns]) for name in turns[0]}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds = a sizes^b, fitted to the logarithms by least squares."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(seconds).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def parser(doc: str, *, turns: int = 7) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--turns", type=int, default=turns, help=f"turns that count, at least {LEAST} (1 with --quick)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--device", default="cpu", help="cpu, cuda")
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; its figures mean nothing")
    made.add_argument("--out", type=Path, help="write the figures to this JSON file")
    return made


def arguments(made: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; threads and the seed are set."""
    args = made.parse_args(words)
    if args.quick:
        args.turns = 1
    elif args.turns < LEAST:
        made.error(f"--turns must be at least {LEAST}: a median of fewer says nothing")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def write(args: argparse.Namespace, results: Mapping[str, Any]) -> dict[str, Any]:
    """Print the figures with what they were taken on, and write them if they are wanted."""
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": args.threads,
        "clock": clock(args.threads, args.device)[0],
        "turns": args.turns,
        "quick": args.quick,
        **results,
    }
    text = json.dumps(report, indent=2)
    print(text, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return report


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
