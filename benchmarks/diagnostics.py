"""What the gradient of a run is made of, and where it leads: by t, at each checkpoint of a run on a known style.

    python train.py checkpoint_every=50 checkpoint_keep=100 run_dir=RUN
    python benchmarks/diagnostics.py RUN --out outputs/diagnostics

On the middles of the validation photos, at fixed noise: size of the style gradient g and of the spectrum term's, the
cosine of -g with the way to the true style (what would be right), the same for m g with the semantic relevance map, the
map itself beside the true change, and how far the fake lags: its loss on fresh results of the generator beside
its loss once it has been fitted to the generator as it stands. Writes diagnostics.json and diagnostics.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor

from smsff.build import build_style_matching
from smsff.config.check import check_config
from smsff.data.crops import middle
from smsff.data.folder import load_photos
from smsff.embedded.demo import Run
from smsff.errors import UserError
from smsff.method.draws import Draws
from smsff.method.gradient import Noised
from smsff.method.module import StyleMatching
from smsff.method.relevance import SemanticRelevance, edit_predictions, minmax
from smsff.method.scores import batch_scores
from smsff.teacher.score import Score
from smsff.training.callbacks.summary import write_json
from smsff.training.checkpoints import read_checkpoint

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES = (5, 20, 40, 80, 120, 200, 300)
SIDE = 192
HELD_OUT = 4
"""Batches on which the fake's losses are compared."""
FIGURES = {  # of every t: name -> what the plot calls it
    "g": "rms of g",
    "spectrum": "rms of the spectrum term's gradient",
    "cosine": "cosine of -g and the way to the truth",
    "cosine_relevance": "the same of -m g",
    "relevance_mean": "mean of m",
    "relevance_correlation": "correlation of m and the true change",
}


def flat_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the samples of the cosine of (B, C, h, w) and (B, C, h, w), each without its channels' means.

    Of maps of one channel it is their correlation.
    """
    a, b = (x - x.mean((2, 3), keepdim=True) for x in (a, b))
    return float(F.cosine_similarity(a.flatten(1), b.flatten(1)).mean())


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


class Pictures:
    """Middles x of the validation photos, (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) of them and of their truth."""

    def __init__(self, module: StyleMatching, run: Run) -> None:
        x = torch.cat([middle(photo, SIDE) for photo in load_photos("val").values()])
        self.x = 2 * x - 1
        self.z_src = module.teacher.latent.encode(self.x)
        self.z_true = module.teacher.latent.encode(2 * run.operator(x) - 1)


@torch.no_grad()
def at_time(
    module: StyleMatching, pictures: Pictures, z: Tensor, t: int, *, caption: str, draws: int
) -> dict[str, float]:
    """The figures at one t, mean over the draws; gradients are averaged over the draws before cosines are taken."""
    cond = module.encode_prompts([caption] * len(z))
    times = torch.full((len(z),), t)
    relevance = SemanticRelevance(normalize="minmax_mean")
    change = (pictures.z_true - pictures.z_src).abs().mean(1, keepdim=True)
    g_mean, mg_mean = torch.zeros_like(z), torch.zeros_like(z)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for draw in range(draws):
        noise = Draws(0, draw, range(len(z)), like=z).normal("noise", tuple(z.shape[1:]))
        at = Noised(z, pictures.z_src, noise, times, module.teacher.schedule)
        g = module.objective.gradient(batch_scores(module.teacher, module.fake, cond), at)
        m = relevance(*edit_predictions(module.teacher.base, at, cond.edit, cond.null))
        found["g"].append(rms(g))
        found["relevance_mean"].append(float(minmax(m).mean()))
        found["relevance_correlation"].append(flat_cosine(m, change))
        g_mean, mg_mean = g_mean + g / draws, mg_mean + m * g / draws
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        loss = module.regularizer(leaf, pictures.z_src, times).mean()
        pull = torch.autograd.grad(loss, leaf)[0] * z.numel() if loss.requires_grad else torch.zeros_like(z)
    found["spectrum"], way = [rms(pull)], pictures.z_true - z
    found["cosine"], found["cosine_relevance"] = [flat_cosine(-g_mean, way)], [flat_cosine(-mg_mean, way)]
    return {name: statistics.fmean(values) for name, values in found.items()}


def fake_lag(
    module: StyleMatching, batches: Iterator[dict[str, Any]], *, caption: str, fit: int, lr: float
) -> dict[str, float]:
    """Denoising loss on fresh results of the base, of the fake, and of the fake after `fit` more steps on them.

    The module's fake is left fitted.
    """
    fake = module.fake
    assert fake is not None

    def result(batch: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return module.teacher.latent.encode(module.generator(batch["image"]))

    def loss(score: Score, z: Tensor, number: int) -> Tensor:
        draws = Draws(1, number, range(len(z)), like=z)
        t = module.fake_timesteps(draws.uniform("t"), module.steps // 2, module.steps)
        noise = draws.normal("noise", tuple(z.shape[1:]))
        cond = module.encode_prompts([caption] * len(z)).source
        return fake.loss_of(score(module.teacher.schedule.add_noise(z, noise, t), t, cond), noise, t).mean()

    held_out = [result(next(batches)) for _ in range(HELD_OUT)]

    @torch.no_grad()
    def mean_loss(score: Score) -> float:
        return statistics.fmean(float(loss(score, z, number)) for number, z in enumerate(held_out))

    found = {"base": mean_loss(module.teacher.base), "fake": mean_loss(fake)}
    optimizer = torch.optim.AdamW([p for _, p in fake.trainable_parameters()], lr=lr, weight_decay=0.0)
    for number in range(fit):
        optimizer.zero_grad()
        loss(fake, result(next(batches)), 100 + number).backward()
        optimizer.step()
    found["fitted"] = mean_loss(fake)
    return found


def examine(folder: Path, *, draws: int, fit: int) -> dict[str, Any]:
    """All figures of a run: step -> t -> figures, and the losses of the fake.

    Raises:
        UserError: the folder holds no run on a known style, or no checkpoint.
    """
    run = Run.open(folder)
    files = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stem == "last", path.stem))
    if not files:
        raise UserError(f"{folder / 'checkpoints'}: no checkpoint in it")
    plain = {**run.config, "data": {**run.config["data"], "steps": HELD_OUT + fit}}
    check_config(plain)
    module, data = build_style_matching(plain)
    module.log = lambda *_, **__: None
    data.setup("fit")
    lr, caption = plain["optimizer"]["fake"]["lr"], plain["data"].get("default_caption", "")
    pictures = Pictures(module, run)
    found: dict[str, Any] = {"run": folder.name, "steps": {}}
    for file in files:
        checkpoint = read_checkpoint(file)
        if str(checkpoint["global_step"]) in found["steps"]:
            continue  # the last one has two names
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        with torch.no_grad():
            z = module.teacher.latent.encode(module.ema(pictures.x))
        by_time = {str(t): at_time(module, pictures, z, t, caption=caption, draws=draws) for t in TIMES}
        one: dict[str, Any] = {"t": by_time, "way": rms(pictures.z_true - z)}
        if module.fake is not None and fit:
            one["fake"] = fake_lag(module, iter(data.train_dataloader()), caption=caption, fit=fit, lr=lr)
        found["steps"][str(checkpoint["global_step"])] = one
        print(
            folder.name, checkpoint["global_step"], {k: round(v, 4) for k, v in one.get("fake", {}).items()}, flush=True
        )
    return found


def plot(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """One line of panels a run; one curve a checkpoint, and the fake's losses over the steps."""
    figure, axes = plt.subplots(
        len(runs), len(FIGURES) + 1, figsize=(3.4 * (len(FIGURES) + 1), 3.2 * len(runs)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for line, run in zip(axes, runs, strict=True):
        steps = list(run["steps"])
        colours = plt.get_cmap("viridis")
        for axis, (name, label) in zip(line, FIGURES.items(), strict=False):
            for number, step in enumerate(steps):
                values = [run["steps"][step]["t"][str(t)][name] for t in TIMES]
                colour = colours(number / max(len(steps) - 1, 1))
                axis.plot(TIMES, values, "o-", ms=3, color=colour, label=f"step {step}")
            axis.set(title=label, xlabel="t")
            axis.title.set_fontsize(9)
        line[0].set_ylabel(run["run"])
        line[0].legend(fontsize=7)
        fakes = {int(step): one["fake"] for step, one in run["steps"].items() if "fake" in one}
        for name in ("base", "fake", "fitted") if fakes else ():
            line[-1].plot(list(fakes), [one[name] for one in fakes.values()], "o-", ms=3, label=name)
        line[-1].set(title="denoising loss on fresh results", xlabel="step")
        line[-1].title.set_fontsize(9)
        if fakes:
            line[-1].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after one message for bad input."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs on known styles")
    made.add_argument("--out", type=Path, default=Path("outputs/diagnostics"))
    made.add_argument("--draws", type=int, default=4, help="of the noise, for each t")
    made.add_argument("--fit", type=int, default=80, help="steps in which the fake is fitted; 0: none")
    args = made.parse_args(words)
    try:
        found = [examine(run, draws=args.draws, fit=args.fit) for run in args.runs]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "diagnostics.json", {"runs": found})
    plot(found, args.out / "diagnostics.png")
    print(args.out / "diagnostics.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
