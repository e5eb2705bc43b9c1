"""How the time of a step grows with the batch and with the size of the pictures: exponents fitted to the logarithms.

An exponent of 1 is linear in the samples, or in the pixels; below 1 something is spread over more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timing import arguments, exponent, parser, spread, summary, take_turns, write
from train_step import OurStep, composed


def measure(
    key: str, values: Sequence[int], options: Sequence[str], work: Sequence[float], args: Any
) -> dict[str, Any]:
    """Steps of the default training with `key` at each of `values`, which make `work` of it, in turns."""
    common = ["trainer=cpu", "steps=100000", "warmup.steps=0", "logger=none", *options]
    steps = {str(value): OurStep(composed([*common, f"{key}={value}"]), device=args.device) for value in values}
    turns = take_turns(steps, turns=args.turns, threads=args.threads, device=args.device)
    names = list(steps)
    exponents = [exponent(work, [turn[name] for name in names]) for turn in turns]
    last = [exponent(work[-2:], [turn[name] for name in names[-2:]]) for turn in turns]
    return {
        "key": key,
        "values": list(values),
        "exponent": spread(exponents),
        "exponent_of_the_last_two": spread(last),
        "seconds": summary(turns),
    }


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "", turns=5)
    made.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    made.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    args = arguments(made, words)
    if args.quick:
        args.batches, args.sizes = [1, 2], [16, 32]
    small = str(args.sizes[0])
    results = [
        measure(
            "data.batch_size",
            args.batches,
            [f"resolution={small}" if args.quick else "seed=0"],
            args.batches,
            args,
        ),
        measure("resolution", args.sizes, ["data.batch_size=1"], [size**2 for size in args.sizes], args),
    ]
    return write(args, {"what": "a step of the default training, embedded teacher", "results": results})


if __name__ == "__main__":
    main()
