"""Style and fake in one call of the U-Net with an adapter for each row, beside two calls: is it worth having?

The mixed call is peft's own (``adapter_names``), which divides the rows of every adapted layer. Without gradient.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pipelines import build_reduced
from timing import arguments, parser, ratio, summary, take_turns, write
from torch import Tensor, nn

from smsff.embedded.teacher import ASSETS
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import FAKE, LoraFakeScore
from smsff.teacher.stable_diffusion import STYLE, StableDiffusionTeacher, load_stable_diffusion


def mixed(teacher: StableDiffusionTeacher, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Style and fake on the same inputs, the rows of the style first."""
    names = [STYLE] * len(z_t) + [FAKE] * len(z_t)

    def choose(layer: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, {**options, "adapter_names": names}

    layers = teacher.adapters._layers
    handles = [layer.register_forward_pre_hook(choose, with_kwargs=True) for layer in layers]  # type: ignore[attr-defined]
    with torch.no_grad(), teacher.using(STYLE):
        both = teacher.predict(teacher.unet, torch.cat([z_t, z_t]), torch.cat([t, t]), cond.repeat(2))
    for handle in handles:
        handle.remove()
    return both


def compare(name: str, base: str, lora: str, side: int, targets: Sequence[str], args: Any) -> list[dict[str, Any]]:
    """At batch 1 and 2."""
    teacher = load_stable_diffusion(base=base, lora=lora)
    fake = LoraFakeScore(teacher, target_modules=targets)
    for parameter_name, parameter in fake.trainable_parameters():
        if ".lora_B." in parameter_name:
            nn.init.normal_(parameter, std=0.02)
    found = []
    for batch in (1, 2):
        z = torch.randn(batch, teacher.latent.channels, side, side)
        t = torch.full((batch,), 40)
        cond = teacher.encode_prompts(["a photo"] * batch)

        def two() -> Tensor:
            with torch.no_grad():
                return torch.cat([teacher.style(z, t, cond), fake(z, t, cond)])  # noqa: B023

        def one() -> Tensor:
            return mixed(teacher, z, t, cond)  # noqa: B023

        difference = float((two() - one()).abs().max())
        turns = take_turns({"two calls": two, "one mixed call": one}, turns=args.turns, threads=args.threads)
        faster = ratio(turns, "two calls", "one mixed call")
        found.append({"model": name, "batch": batch, "latent": side, "largest_difference": difference})
        found[-1] |= {"two_calls_over_one": faster, "seconds": summary(turns)}
        print(name, batch, faster, flush=True)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(parser(__doc__ or ""), words)
    attention = ["to_q", "to_v"]
    lora = str(ASSETS / "loras" / "watercolour.safetensors")
    results = compare("embedded", str(ASSETS), lora, 16 if args.quick else 32, attention, args)
    if not args.quick:
        with tempfile.TemporaryDirectory() as folder:
            base, style = build_reduced(Path(folder) / "reduced")
            results += compare("SD 1.5, reduced", str(base), str(style), 32, attention, args)
    return write(args, {"results": results})


if __name__ == "__main__":
    main()
