"""One training step beside one iteration of the authors' code, on the same U-Net: how many times faster.

The reference is counted again in `reference_work.py`. Ours is the module that train.py builds, of the real
configuration, with the options that are printed; a step is forward, backward, clipping, optimizer and average. The
per-image mode at batch 1 is what the authors' code does; nothing but the scores costs anything there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from pipelines import HEADS, WIDTHS, build_reduced, reduced_unet
from reference_work import ReferenceStep
from timing import arguments, parser, ratio, summary, take_turns, write
from torch import nn

from smsff.build import build_style_matching
from smsff.config.check import check_config, resolve
from smsff.data.folder import BUNDLED
from smsff.method.module import StyleMatching

MODELS = ("reduced", "wide-heads")
ROOT = Path(__file__).resolve().parent.parent
OURS = ("experiment=per_image",)
PLAIN, FAST = "speed=plain", "speed=fast"
SHARED = (PLAIN, "speed.share_draw=true")
NO_GUIDANCE = ("objective.style_guidance=1", "objective.fake_guidance=1")
NO_MAP = "relevance=uniform"

LADDER: dict[str, tuple[str, ...]] = {
    "default, float32 (7 + 1)": (*OURS, PLAIN),
    "default, 16 bits (7 + 1)": (*OURS, "speed=half"),
    "shared draw (6 + 1)": (*OURS, *SHARED),
    "speed=fast (6 + 1)": (*OURS, FAST),
    "shared draw, no guidance on the fake (5 + 1)": (*OURS, *SHARED, "objective.fake_guidance=1"),
    "no guidance (5 + 1)": (*OURS, PLAIN, *NO_GUIDANCE),
    "no relevance map (5 + 1)": (*OURS, PLAIN, NO_MAP),
    "neither (3 + 1)": (*OURS, PLAIN, *NO_GUIDANCE, NO_MAP),
    "neither, shared draw (2 + 1)": (*OURS, *SHARED, *NO_GUIDANCE, NO_MAP),
    "neither, speed=fast (2 + 1)": (*OURS, FAST, *NO_GUIDANCE, NO_MAP),
}
"""Options of train.py by the sample-forwards + sample-backwards of the U-Net that they cost; the reference: 8 + 2."""
BARS = ("default, float32 (7 + 1)", "default, 16 bits (7 + 1)", "neither, speed=fast (2 + 1)")
"""The authors' passes and draws; the same as `speed=auto` computes it on a GPU; the fewest passes."""
QUICK = ("default, float32 (7 + 1)", "neither, speed=fast (2 + 1)")


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The checked configuration of train.py with these options."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        plain = resolve(compose("train", overrides=["run_dir=outputs/bench/run", *overrides]))
    check_config(plain)
    return plain


class OurStep:
    """The steps of a run without a trainer around them."""

    def __init__(self, plain: dict[str, Any], *, device: str) -> None:
        self.module: StyleMatching
        self.module, data = build_style_matching(plain)
        self.module.to(device)
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
        self.module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
        data.setup("fit")
        self.batches: Iterator[dict[str, Any]] = iter(data.train_dataloader())
        self.batch = next(self.batches)
        self.optimizer: Any = self.module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
        self.mixed, self.device = plain["trainer"]["precision"] == "bf16-mixed", torch.device(device)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.mixed else nullcontext()

    def __call__(self) -> None:
        self.batch.pop("unreadable", None)
        batch = self.module.transfer_batch_to_device(self.batch, self.device, 0)
        self.optimizer.zero_grad()
        with self.precision():
            loss = self.module.training_step(batch, 0)
        loss.backward()
        self.module.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()
        self.module.guard.outcomes()


def count(step: OurStep) -> dict[str, int]:
    """Samples that go through the U-Net in one step, forward and back."""
    seen = {"forward": 0, "backward": 0}

    def back(gradient: torch.Tensor) -> None:
        seen["backward"] += len(gradient)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["forward"] += len(output[0])
        if output[0].requires_grad:
            output[0].register_hook(back)

    handle = step.module.teacher.unet.register_forward_hook(after)  # type: ignore[union-attr, operator]
    step()
    handle.remove()
    return seen


def reference(unet: Callable[[], Any], step: OurStep, device: str) -> ReferenceStep:
    """Their iteration on the U-Net and from the latent of a step of ours."""
    module = step.module
    teacher: Any = module.teacher
    latent: Any = module.generator.value
    state = teacher.unet.state_dict()
    plain = {name.replace(".base_layer", ""): p for name, p in state.items() if "lora_" not in name}
    base, style = unet(), unet()
    for network in (base, style):
        network.load_state_dict(plain)
        network.eval().to(device)
    z = latent.detach().clone(memory_format=torch.contiguous_format)
    cond = module.encode_prompts(step.batch["caption"])
    prompts = torch.cat([cond.null.tokens, cond.source.tokens]).to(device)
    return ReferenceStep(base, style, teacher.schedule, z, prompts)


def measure(
    name: str, rows: Sequence[str], picture: int, model: Sequence[str], unet: Any, path: Path, args: Any
) -> dict[str, Any]:
    """All rows and the reference, in turns."""
    common = [*model, f"data.short_side={picture}", "data.multiple=8", f"data.path={path}"]
    common += ["steps=100000", "warmup.steps=0", "logger=none"]
    steps = {row: OurStep(composed([*LADDER[row], *common]), device=args.device) for row in rows}
    theirs = reference(unet, steps[rows[0]], args.device)
    passes = {}
    for row, step in steps.items():
        step()  # fills caches
        passes[row] = count(step)
    candidates = {"reference": theirs, **steps}
    turns = take_turns(candidates, turns=args.turns, threads=args.threads, device=args.device)
    found: dict[str, Any] = {"model": name, "picture": picture, "batch": 1, "seconds": summary(turns), "rows": {}}
    found["parameters"] = sum(p.numel() for p in theirs.style.parameters())
    for row in rows:
        faster = ratio(turns, "reference", row)
        found["rows"][row] = {"options": [*LADDER[row]], "passes": passes[row], "times_faster": faster}
        print(f"{name}: {row}: {faster['median']:.2f} ({faster['min']:.2f} to {faster['max']:.2f})", flush=True)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "", turns=5)
    made.add_argument("--rows", nargs="+", choices=list(LADDER), help="a part of the table")
    made.add_argument("--picture", type=int, default=256, help="side in pixels of the picture for the reduced model")
    made.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = arguments(made, words)
    rows = args.rows or (QUICK if args.quick else tuple(LADDER))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "square.png"
        Image.open(BUNDLED / "test" / "chelsea.jpg").crop((0, 0, 256, 256)).save(path)
        reduced = (("reduced", HEADS, rows), ("wide-heads", 2, args.rows or BARS))
        for name, heads, chosen in reduced[: 1 if args.quick else None]:
            if name not in args.models:
                continue
            widths, rank = ((16, 16, 32, 32), 2) if args.quick else (WIDTHS, 8)
            unet = partial(reduced_unet, widths, heads)
            base, lora = build_reduced(Path(folder) / name / "model", widths=widths, rank=rank, heads=heads)
            model = ["style=demo_watercolour", "teacher=sd15", f"teacher.base={base}", f"style.lora={lora}"]
            model += ["teacher.gradient_checkpointing=false", "trainer=cpu"]
            side = 64 if args.quick else args.picture
            results.append(measure(f"SD 1.5, reduced, {heads} heads", chosen, side, model, unet, path, args))
    return write(args, {"reference": "8 sample-forwards and 2 sample-backwards, float32", "results": results})


if __name__ == "__main__":
    main()
