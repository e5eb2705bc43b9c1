"""The training step at the full size of Stable Diffusion 1.5 on a GPU, beside the authors' work: speed and memory.

    python benchmarks/gpu.py --device cuda --threads 8 --seconds 110 --out outputs/bench/gpu.json

U-Net, auto-encoder and text encoder have the published shapes and random weights. The weights are made on the GPU,
written once in 16 bits (to the main memory where there is room) and loaded by the loader of train.py. Each row is
printed and written as soon as it is known, the most important ones first, and none is begun after --seconds. Each
candidate runs under its own precision of float32 products: the authors' code under PyTorch's default, ours as `speed`
says.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import psutil
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from pipelines import build_reduced, reduced_unet, write_lora, write_pipeline
from timing import arguments, clock, parser, ratio, spread, summary, take_turns
from torch import nn
from train_step import BARS, FAST, LADDER, OurStep, composed, count, reference
from transformers import CLIPTextConfig, CLIPTextModel

import smsff.build
import smsff.training.speed
from smsff.atomic import write_aside
from smsff.data.folder import BUNDLED
from smsff.data.single import SingleImage
from smsff.teacher.base.families import clip_tokenizer, family_config
from smsff.teacher.trainable import checkpointing
from smsff.training.optimizer import update_average
from smsff.weights.forecast import forecast
from smsff.weights.manifest import look, needs

T = TypeVar("T")
FULL, TINY = (320, 640, 1280, 1280), (16, 16, 32, 32)
RANK = 32
"""Of the style LoRA: 11,968,512 parameters."""
BATCHES, CHECKPOINTED = (1, 2, 4, 8, 16), 8
REFERENCE = "reference (8 + 2)"
SAME, _, FASTEST = BARS
COMPILED = f"compiled scores, {FASTEST}"
PER_IMAGE_GB, FEED_FORWARD_GB = 5.0, 8.0
"""Most memory that one 512 x 512 picture may take, GB (10^9 bytes), with gradient checkpointing and `speed=fast`."""
LEAST_TO_COMPILE = 30.0
PARTS = ("per-image", "feed-forward", "forecast", "compiled")
DEFAULT_PRODUCTS = torch.get_float32_matmul_precision()
"""PyTorch's own, before any `Speed` has set it."""
STARTED = time.monotonic() - min(max(time.time() - psutil.Process().create_time(), 0.0), 60.0)
"""When the process did; within bounds, as the clock of a machine that was only just woken may leap."""


class Report:
    """Rows, each printed and written when it is added.

    Args:
        args: Of the command line.
        head: What they were taken on.
    """

    def __init__(self, args: argparse.Namespace, head: dict[str, Any]) -> None:
        self.args, self.content = args, {**head, "rows": list[dict[str, Any]]()}

    @staticmethod
    def elapsed() -> float:
        """Seconds since the process started."""
        return time.monotonic() - STARTED

    @property
    def left(self) -> float:
        """Seconds in which rows may be begun."""
        return float(self.args.seconds) - self.elapsed()

    def add(self, row: str, **figures: Any) -> None:
        one = {"row": row, "at": round(self.elapsed(), 1), **figures}
        self.content["rows"].append(one)
        print(json.dumps(one), flush=True)
        if self.args.out:
            text = json.dumps(self.content, indent=2) + "\n"
            write_aside(self.args.out, lambda aside: aside.write_text(text))

    def attempt(self, row: str, work: Callable[[], T]) -> T | None:
        """The result of `work`, which adds its own row; None where time is up, and where it fails, which is a row."""
        if self.left <= 0:
            self.add(row, skipped="no time was left")
            return None
        try:
            return work()
        except Exception as error:
            traceback.print_exc()
            self.add(row, error=f"{type(error).__name__}: {str(error).strip()[:300]}")
            return None

    def figure(self, row: str, name: str) -> Any:
        """A figure of an earlier row, None if it is not there."""
        return next((one.get(name) for one in self.content["rows"] if one["row"] == row), None)


class Step(OurStep):
    """The steps of a run, with the average of the generator, under mixed precision as Lightning has it.

    The teacher goes to the device as soon as it is loaded, so that picture and prompts are encoded there: a run does
    that on the CPU, once, which takes longer at this size than all turns.
    """

    def __init__(self, plain: dict[str, Any], *, device: str) -> None:
        build = smsff.build.build

        def on_device(node: Any) -> Any:
            made = build(node)
            if isinstance(made, SingleImage):
                made.image = made.image.to(device)
            if hasattr(made, "train_dataloader"):
                self.data: Any = made
            return made.to(device) if isinstance(made, nn.Module) else made

        torch.set_float32_matmul_precision(DEFAULT_PRODUCTS)
        with patch.object(smsff.build, "build", on_device):
            super().__init__(plain, device=device)
        self.products = torch.get_float32_matmul_precision()
        self.plain = plain

    def precision(self) -> AbstractContextManager[Any]:
        if not self.mixed:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def __call__(self) -> None:
        super().__call__()
        module = self.module
        update_average(module.ema, module.generator, decay=module.ema_decay, skip=module.guard.found_inf)

    def feed(self, batch: int) -> float:
        """Take a batch of this size from now on; seconds until the loader has made one."""
        self.data.batch_size = batch
        self.batches = iter(self.data.train_dataloader())
        next(self.batches)
        start = time.perf_counter()
        self.batch = next(self.batches)
        return time.perf_counter() - start

    def checkpoint(self, wanted: bool) -> None:
        """Switch what ``teacher.gradient_checkpointing`` switches when a teacher is loaded."""
        teacher: Any = self.module.teacher
        if wanted:
            teacher.unet.enable_gradient_checkpointing(checkpointing(teacher.adapters))
            teacher.latent.vae.enable_gradient_checkpointing()
        else:
            teacher.unet.disable_gradient_checkpointing()
            teacher.latent.vae.disable_gradient_checkpointing()

    def forget(self) -> None:
        """Let go of what a step that failed has left."""
        self.optimizer.zero_grad()
        release(self.device.type)


def release(device: str) -> None:
    """Hand memory back that nothing holds."""
    gc.collect()
    if device != "cpu":
        getattr(torch._C, "_cuda_clearCublasWorkspaces", gc.collect)()
        torch.cuda.empty_cache()


def allocated(device: str) -> int:
    """Bytes of tensors on the device; 0 on the CPU."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def peak_of(work: Callable[[], T], device: str) -> tuple[T, int]:
    """The result of `work` and the most bytes that were allocated meanwhile."""
    if device == "cpu":
        return work(), 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated()


def under(products: str, step: Callable[[], object], calls: int) -> Callable[[], None]:
    """Some steps one after the other, under the precision of float32 products that belongs to them."""

    def turn() -> None:
        torch.set_float32_matmul_precision(products)
        for _ in range(calls):
            step()

    return turn


def random_unet(widths: tuple[int, ...], device: str) -> UNet2DConditionModel:
    with torch.device(device):
        return reduced_unet(widths)


def build_full(folder: Path, device: str) -> tuple[Path, Path]:
    """Write Stable Diffusion 1.5 with random weights in float16, made on the device, and a LoRA; folder and file."""
    config = family_config("sd1")
    with torch.device(device):
        vae = AutoencoderKL.from_config(dict(config.vae))
        text = CLIPTextModel(CLIPTextConfig.from_dict(dict(config.text_encoders[0])))
    unet = random_unet(FULL, device).half()
    parts = {
        "unet": unet,
        "vae": vae.half(),
        "text_encoder": text.half(),
        "tokenizer": clip_tokenizer("sd1"),
        "scheduler": DDPMScheduler.from_config(dict(config.scheduler)),
    }
    write_pipeline(folder, parts)
    return folder, write_lora(unet, folder.parent / "style.safetensors", rank=RANK)


def prepare(work: Path, args: argparse.Namespace) -> None:
    """Write the pipeline, the LoRA and the picture, where they are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    Image.open(BUNDLED / "test" / "chelsea.jpg").crop((0, 0, 256, 256)).save(work / "square.png")
    if not (work / "style.safetensors").is_file():  # it is written last
        if args.quick:
            build_reduced(work / "model", widths=TINY, rank=2)
        else:
            build_full(work / "model", args.device)
    release(args.device)


def options(work: Path, side: int) -> list[str]:
    """What all runs have in common."""
    common = ["style=demo_watercolour", "teacher=sd15", f"teacher.base={work / 'model'}"]
    common += [f"style.lora={work / 'style.safetensors'}", f"resolution={side}", "teacher.local_files_only=true"]
    return [*common, "steps=100000", "warmup.steps=0", "logger=none", "trainer=auto"]


def one_picture(work: Path, side: int) -> list[str]:
    """The same of a per-image run."""
    return [*options(work, side), f"data.path={work / 'square.png'}", "data.multiple=8"]


def loaded(
    words: Sequence[str], args: argparse.Namespace, *, first: Callable[[Step], object]
) -> tuple[Step, dict[str, Any]]:
    """A run with gradient checkpointing, and the memory of its first steps.

    Args:
        words: Overrides of train.py.
        first: Makes one step.
    """
    release(args.device)
    before = allocated(args.device)
    step = Step(composed(words), device=args.device)
    release(args.device)
    weights = allocated(args.device) - before

    def steps() -> Any:
        torch.set_float32_matmul_precision(step.products)
        result = first(step)
        step()
        return result

    found, peak = peak_of(steps, args.device)
    gigabytes = {"before": before / 1e9, "weights": weights / 1e9, "peak": (peak - before) / 1e9}
    return step, {"passes": found, "products": step.products, "gb": gigabytes}


def per_image(work: Path, args: argparse.Namespace, report: Report) -> None:
    """Rows 1: the authors' iteration and ours at batch 1 in turns, and the memory of each."""
    side, device = (64 if args.quick else 512), args.device
    steps: dict[str, Step] = {}
    candidates: dict[str, Callable[[], object]] = {}

    def load_ours(name: str) -> None:
        step, found = loaded([*LADDER[name], *one_picture(work, side)], args, first=count)
        step.checkpoint(False)
        _, plain = peak_of(step, device)
        found["gb"]["peak_without_checkpointing"] = plain / 1e9 - found["gb"]["before"]
        report.add(f"memory, per image, {name}", options=[*LADDER[name]], **found)
        steps[name], candidates[name] = step, under(step.products, step, args.calls)

    def load_theirs() -> None:
        before = allocated(device)
        torch.set_float32_matmul_precision(DEFAULT_PRODUCTS)
        theirs = reference(partial(random_unet, TINY if args.quick else FULL, device), steps[SAME], device)
        weights = allocated(device) - before
        _, peak = peak_of(theirs, device)
        gigabytes = {"before": before / 1e9, "weights": weights / 1e9, "peak": (peak - before) / 1e9}
        report.add(f"memory, {REFERENCE}", products=DEFAULT_PRODUCTS, gb=gigabytes)
        candidates[REFERENCE] = under(DEFAULT_PRODUCTS, theirs, args.calls)

    def in_turns() -> None:
        turns = take_turns(candidates, turns=args.turns, threads=args.threads, device=device)
        for name in reversed(candidates):
            seconds = {key: value / args.calls for key, value in summary(turns)[name].items()}
            faster = ratio(turns, REFERENCE, name) if REFERENCE in candidates else None
            report.add(f"per image, {name}", seconds=seconds, per_second=1 / seconds["median"], times_faster=faster)

    for name in reversed(BARS):  # the fastest first, whose memory is measured with nothing beside it
        report.attempt(f"memory, per image, {name}", partial(load_ours, name))
    if SAME in steps:
        candidates[f"{SAME}, speed.tf32=false"] = under(DEFAULT_PRODUCTS, steps[SAME], args.calls)
        report.attempt(f"memory, {REFERENCE}", load_theirs)
    if candidates:
        report.attempt("per image, in turns", in_turns)


def feed_forward(work: Path, args: argparse.Namespace, report: Report) -> None:
    """Rows 2 and 3: training of a network, images a second beside the authors' iterations; memory at batch 1."""
    side, device = (64 if args.quick else 512), args.device
    words = [*options(work, side), FAST, "data=bundled", "data.batch_size=1"]
    step, found = loaded(words, args, first=count)
    report.add("memory, feed-forward, batch 1", options=[FAST], **found)
    theirs = report.figure(f"per image, {REFERENCE}", "per_second")

    def row(name: str, batch: int) -> None:
        try:
            loading = step.feed(batch)
            torch.set_float32_matmul_precision(step.products)
            _, peak = peak_of(step, device)
            turn = {name: under(step.products, step, args.calls)}
            turns = take_turns(turn, turns=args.turns, threads=args.threads, device=device)
        finally:
            step.forget()
        per_second = spread([batch * args.calls / turn[name] for turn in turns])
        faster = None if theirs is None else {key: value / theirs for key, value in per_second.items()}
        figures = {"images_per_second": per_second, "times_faster": faster}
        report.add(name, batch=batch, **figures, seconds_of_loader=loading, peak_gb=peak / 1e9 - found["gb"]["before"])

    step.checkpoint(False)
    for batch in BATCHES[: 2 if args.quick else None]:
        report.attempt(f"feed-forward, batch {batch}", partial(row, f"feed-forward, batch {batch}", batch))
    step.checkpoint(True)
    name = f"feed-forward, batch {CHECKPOINTED}, gradient checkpointing"
    report.attempt(name, partial(row, name, CHECKPOINTED))


def forecasts(work: Path, args: argparse.Namespace, report: Report) -> None:
    """What `smsff doctor` says of the two runs whose memory has a bar, beside what was measured."""
    side = 64 if args.quick else 512
    runs = {
        f"per image, {FASTEST}": ([*LADDER[FASTEST], *one_picture(work, side)], PER_IMAGE_GB),
        "feed-forward, batch 1": ([*options(work, side), FAST, "data=bundled", "data.batch_size=1"], FEED_FORWARD_GB),
    }
    for name, (words, bar) in runs.items():
        plain = composed(words)
        memory, reason = forecast(plain, [look(need, None, verify=False) for need in needs(plain)], gpus=1)
        expected = reason if memory is None else {"weights": memory["frozen"] / 1e9, "peak": memory["total"] / 1e9}
        measured = report.figure(f"memory, {name}", "gb")
        report.add(f"forecast, {name}", forecast_gb=expected, measured_gb=measured, bar_gb=bar)


def compiled(work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the fastest per-image step before and after torch.compile of the scores."""
    if args.quick:
        smsff.training.speed.BACKEND = "eager"
    words = [*LADDER[FASTEST], *one_picture(work, 64 if args.quick else 512), "speed.compile=[scores]"]
    step = Step(composed(words), device=args.device)
    step.checkpoint(False)
    turn = {"step": under(step.products, step, args.calls)}
    options = {"turns": args.turns, "threads": args.threads, "device": args.device}
    with torch.compiler.set_stance("force_eager"):
        step()
        before = take_turns(turn, **options)
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    step()
    after = take_turns(turn, **options)
    times = [spread([one["step"] / args.calls for one in turns]) for turns in (before, after)]
    faster = times[0]["median"] / times[1]["median"]
    return {"seconds_to_compile": seconds, "eager": times[0], "compiled": times[1], "times_faster_than_eager": faster}


def compile_in_what_is_left(work: Path, args: argparse.Namespace, report: Report) -> None:
    """Row 4, in a process of its own that is ended when time is up."""
    row, given = COMPILED, max(report.left, 0.0)
    if given < LEAST_TO_COMPILE:
        report.add(row, skipped=f"{given:.0f} seconds were left")
        return
    command = [sys.executable, __file__, "--only", "compiled", "--child", "--work", str(work), "--device", args.device]
    command += ["--threads", str(args.threads), "--turns", str(max(args.turns, 5)), *["--quick"] * args.quick]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given)
    except subprocess.TimeoutExpired:
        report.add(row, skipped=f"not finished within {given:.0f} seconds")
        return
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    theirs = report.figure(f"per image, {REFERENCE}", "seconds")
    if theirs is not None:
        found["times_faster"] = {"median": theirs["median"] / found["compiled"]["median"]}
    report.add(row, options=[*LADDER[FASTEST], "speed.compile=[scores]"], **found)


def bars(report: Report) -> None:
    """What was to be reached, and what was."""
    batches = {batch: report.figure(f"feed-forward, batch {batch}", "times_faster") for batch in BATCHES}
    found = [report.figure(row, "times_faster") for row in (*[f"per image, {name}" for name in BARS], COMPILED)]
    first = [one["median"] for one in [*found, batches[1]] if one]
    every = [one["median"] for one in [*found, *batches.values()] if one]
    memory = {
        name: (report.figure(f"memory, {name}", "gb") or {}).get("peak")
        for name in (f"per image, {FASTEST}", "feed-forward, batch 1")
    }
    report.add(
        "bars",
        at_batch_1={"wanted": 5, "found": max(first, default=None)},
        at_the_best_batch={"wanted": 10, "found": max(every, default=None)},
        peak_gb=memory,
        peak_gb_below={"per image": PER_IMAGE_GB, "feed-forward": FEED_FORWARD_GB},
    )


def place() -> str | None:
    """Where temporary weights go: the main memory if they fit, else wherever Python puts temporary files."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 8e9 else None


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "", turns=5)
    made.add_argument("--seconds", type=float, default=600, help="since the process started: no row is begun later")
    made.add_argument("--work", type=Path, help="folder for the weights, 2.3 GB, used again if they are there")
    made.add_argument("--calls", type=int, default=2, help="steps in one turn")
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="a part of the rows")
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = arguments(made, words)
    if args.quick:
        args.calls = 1
    if args.child:
        found = compiled(args.work, args)
        print(json.dumps(found), flush=True)
        return found
    head = {
        "torch": torch.__version__,
        "device": "cpu" if args.device == "cpu" else torch.cuda.get_device_name(),
        "clock": clock(args.threads, args.device)[0],
        "default_products": DEFAULT_PRODUCTS,
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        **{name: getattr(args, name) for name in ("threads", "turns", "calls", "quick")},
    }
    report = Report(args, head)
    parts = {"per-image": per_image, "feed-forward": feed_forward, "forecast": forecasts}
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory(dir=place()) as name:
        work = Path(name).absolute()
        report.add("start", **head)
        prepare(work, args)
        report.add("weights", folder=str(work))
        for part, rows in parts.items():
            if part in args.only:
                report.attempt(part, partial(rows, work, args, report))
                release(args.device)
        if "compiled" in args.only:
            report.attempt("compiled", partial(compile_in_what_is_left, work, args, report))
        bars(report)
    return report.content


if __name__ == "__main__":
    main()
