"""What `speed.compile` gains and costs: a training step beside the same one compiled, with adapters that switch.

    python benchmarks/compiled.py                   a quarter of an hour, nearly all of it the compiler

Scores: the per-image step without guidance and relevance map on Stable Diffusion 1.5 at a fifth of its width, where the
one U-Net runs as the style and as the fake, with and without gradient. Generator: the default training on the embedded
teacher.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pipelines import WIDTHS, build_reduced
from timing import arguments, parser, ratio, summary, take_turns, write
from train_step import FAST, LADDER, OurStep, composed

import smsff.training.speed
from smsff.data.folder import BUNDLED

SCORES = ("neither (3 + 1)", "neither, speed=fast (2 + 1)")
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"scores, {name}": ("scores", LADDER[name]) for name in SCORES},
    "generator, default": ("generator", ()),
    "generator, speed=fast": ("generator", (FAST,)),
}
"""Part that is compiled, and options of train.py."""


def compare(part: str, options: Sequence[str], args: Any) -> dict[str, Any]:
    """One step as it is, and with a part of it compiled."""
    losses: dict[str, list[float]] = {"eager": [], "compiled": []}

    def step(name: str, *more: str) -> OurStep:
        torch.manual_seed(0)
        made = OurStep(composed([*options, *more]), device=args.device)
        made.module.log = (  # type: ignore[method-assign]
            lambda figure, value, **_: losses[name].append(float(value)) if figure == "train/loss" else None
        )
        return made

    steps = {"eager": step("eager"), "compiled": step("compiled", f"speed.compile=[{part}]")}
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    start = time.perf_counter()
    for _ in range(2):
        steps["compiled"]()
    seconds = time.perf_counter() - start
    for _ in range(2):
        steps["eager"]()
    found = {
        "part": part,
        "options": [*options],
        "seconds_of_two_steps": seconds,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": dict(counters["graph_break"]),
        "first_losses": {name: values[:2] for name, values in losses.items()},
    }
    turns = take_turns(steps, turns=args.turns, threads=args.threads, device=args.device)
    return found | {"seconds": summary(turns), "times_faster": ratio(turns, "eager", "compiled")}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "", turns=5)
    made.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    args = arguments(made, words)
    torch.compiler.config.force_disable_caches = True  # what an earlier run has compiled would shorten this one
    if args.quick:
        smsff.training.speed.BACKEND = "eager"
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path, side = Path(folder) / "square.png", 64 if args.quick else 256
        Image.open(BUNDLED / "test" / "chelsea.jpg").crop((0, 0, 256, 256)).save(path)
        widths, rank = ((16, 16, 32, 32), 2) if args.quick else (WIDTHS, 8)
        base, lora = build_reduced(Path(folder) / "model", widths=widths, rank=rank)
        per_image = ["style=demo_watercolour", "teacher=sd15", f"teacher.base={base}", f"style.lora={lora}"]
        per_image += ["teacher.gradient_checkpointing=false", f"data.short_side={side}", "data.multiple=8"]
        per_image += [f"data.path={path}"]
        common = ["trainer=cpu", "steps=100000", "warmup.steps=0", "logger=none"]
        for name in args.cases:
            part, options = CASES[name]
            model = per_image if part == "scores" else []
            results[name] = compare(part, [*options, *model, *common], args)
            found = results[name]
            faster = found["times_faster"]
            print(
                f"{name}: {faster['median']:.2f} ({faster['min']:.2f} to {faster['max']:.2f}) times as fast, after "
                f"{found['seconds_of_two_steps']:.0f} s for {found['graphs']} graphs, breaks: {found['graph_breaks']}",
                flush=True,
            )
    return write(args, {"results": results})


if __name__ == "__main__":
    main()
