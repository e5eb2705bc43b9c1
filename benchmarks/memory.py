"""Weights in memory beside the authors' code, and the forecast of the peak, at the size of Stable Diffusion 1.5.

Nothing is loaded: sizes come from the configurations that were published, the peak from one step on tensors without
memory (`smsff.weights.memory`), which is what `smsff doctor` prints for any configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timing import arguments, parser, write

from smsff.generator.unet import UNetGenerator
from smsff.teacher.base.families import family_config
from smsff.teacher.base.skeleton import networks
from smsff.weights.memory import Adapter, MemoryEstimate, predict

STYLE_LORA = 11_968_512
"""Parameters of a LoRA of rank 32 on attention and feed-forward layers."""
FAKE = {"rank": 8, "target_modules": ["to_q", "to_v"]}


def reference(*, other_base: bool) -> float:
    """GB of weights of the authors' code in float32, without the safety checker: U-Nets, text encoder, VAE."""
    sizes = {one.name: one.bytes for one in networks(family_config("sd1"), dtype="float32")}
    copies = 3 if other_base else 2
    return (copies * sizes["U-Net"] + sizes["text encoder"] + sizes["auto-encoder"]) / 1e9


def ours(dtype: Any, *, other_base: bool, latent: bool, checkpointing: bool, mixed: bool) -> MemoryEstimate:
    """A training on one 512 x 512 picture."""
    base = family_config("sd1")
    return predict(
        base,
        style_base=base if other_base else None,
        batch=1,
        size=(512, 512),
        dtype=dtype,
        adapter=Adapter(**FAKE, gradient_checkpointing=checkpointing),
        generator=None if latent else UNetGenerator,
        style_lora=0 if other_base else STYLE_LORA,
        gradient_checkpointing=checkpointing,
        mixed=mixed,
        doubled=True,
        share_draw=True,
        decoder=latent,
        encoder=not latent,
    )


ROWS: tuple[dict[str, Any], ...] = (
    {"dtype": "float32", "other_base": False, "latent": True, "checkpointing": True, "mixed": False},
    {"dtype": "bfloat16", "other_base": False, "latent": True, "checkpointing": True, "mixed": True},
    {"dtype": "bfloat16", "other_base": True, "latent": True, "checkpointing": True, "mixed": True},
    {"dtype": "float32", "other_base": False, "latent": False, "checkpointing": True, "mixed": False},
    {"dtype": "bfloat16", "other_base": False, "latent": False, "checkpointing": True, "mixed": True},
    {"dtype": "bfloat16", "other_base": False, "latent": False, "checkpointing": False, "mixed": True},
    {"dtype": "bfloat16", "other_base": True, "latent": False, "checkpointing": True, "mixed": True},
)


def row(options: dict[str, Any]) -> dict[str, Any]:
    """Weights and peak of one kind of run, in GB (10^9 bytes)."""
    theirs, one = reference(other_base=options["other_base"]), ours(**options)
    found = {
        "mode": "per image" if options["latent"] else "feed-forward",
        "style": "on another base" if options["other_base"] else "a LoRA on the base",
        "dtype": options["dtype"],
        "gradient_checkpointing": options["checkpointing"],
        "weights": one.frozen / 1e9,
        "weights_of_reference": theirs,
        "share_of_reference": one.frozen / 1e9 / theirs,
        "peak": one.total / 1e9,
    }
    print({name: round(x, 3) if isinstance(x, float) else x for name, x in found.items()}, flush=True)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(parser(__doc__ or ""), words)
    return write(
        args,
        {
            "what": "Stable Diffusion 1.5, batch 1, 512 x 512, GB",
            "results": [row(options) for options in ROWS[: 1 if args.quick else None]],
        },
    )


if __name__ == "__main__":
    main()
