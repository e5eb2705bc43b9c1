"""What 16 bits and the memory layout change in the style gradients of the embedded teacher.

Every draw is keyed, so two configurations see the same crops, t and noise, and their gradients can be compared one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timing import arguments, parser, spread, write
from torch import Tensor
from train_step import OurStep, composed

COMMON = ("trainer=cpu", "steps=1000", "warmup.steps=0", "logger=none")
FORMS = {
    "bfloat16 scores": ("teacher.dtype=bfloat16",),
    "float16 scores": ("teacher.dtype=float16",),
    "autocast alone": ("trainer.precision=bf16-mixed",),
    "channels_last": ("speed.channels_last=true",),
    "speed=fast": ("speed=fast",),
}


def cosine(a: Tensor, b: Tensor) -> list[float]:
    """Of each sample."""
    similarity: Tensor = torch.nn.functional.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())
    return [float(x) for x in similarity]


def gradients(options: Sequence[str], steps: int) -> list[Tensor]:
    """g (B, C, h, w) of the first steps; nothing is trained in between."""
    step = OurStep(composed([*COMMON, *options]), device="cpu")
    found: list[Tensor] = []
    see = step.module.guard.see

    def watched(batch: Any, stages: dict[str, Tensor], times: dict[str, Tensor]) -> None:
        found.append(stages["gradient"].float())
        see(batch, stages, times)

    step.module.guard.see = watched  # type: ignore[method-assign]
    for _ in range(steps):
        with step.precision():
            step.module.training_step(step.batch, 0)
        step.batch = next(step.batches)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "")
    made.add_argument("--steps", type=int, default=4, help="batches that are compared")
    made.add_argument("--styles", nargs="+", default=["demo_ink"])
    args = arguments(made, words)
    small = ["data.batch_size=1", "resolution=16"] if args.quick else []
    if args.quick:
        args.steps, args.styles = 1, args.styles[:1]
    results: dict[str, Any] = {}
    for style in args.styles:
        plain = gradients([f"style={style}", *small], args.steps)
        forms = list(FORMS.items())[: 1 if args.quick else None]
        rows = {name: [f"style={style}", *small, *options] for name, options in forms}
        results[style] = {
            name: spread([x for a, b in zip(plain, gradients(options, args.steps), strict=True) for x in cosine(a, b)])
            for name, options in rows.items()
        }
        print(style, results[style], flush=True)
    return write(args, {"cosine_of_gradients": results})


if __name__ == "__main__":
    main()
