"""Small stand-ins shared by the tests of the training loop: a tiny generator, a Gaussian teacher, a finished module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from gaussian import GaussianFakeScore, GaussianTeacher
from torch import Tensor, nn
from torch.utils.data import DataLoader

from smsff.method.gradient import Predict, Scores
from smsff.method.module import StyleMatching
from smsff.method.prompts import Prompts
from smsff.method.relevance import SemanticRelevance
from smsff.method.sms import StyleMatchingObjective
from smsff.method.spectrum import SpectrumRegularizer
from smsff.method.timesteps import Narrowing, Uniform
from smsff.method.warmup import ReconstructionWarmup
from smsff.training.optimizer import GroupOptions


class TinyGenerator(nn.Module):
    """Two convolutions, about 100 weights; starts as the identity."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.features = nn.Conv2d(3, width, 3, padding=1)
        self.to_rgb = nn.Conv2d(width, 3, 1)
        nn.init.zeros_(self.to_rgb.weight)
        nn.init.zeros_(self.to_rgb.bias)

    def config(self) -> dict[str, object]:
        return {"width": self.width}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_rgb(torch.tanh(self.features(x)))


def given_scores(**eps: Tensor | Predict) -> Scores:
    """Scores with the given predictions, tensors or functions; asking for another one is an error."""

    def score(name: str) -> Predict:
        value = eps.get(name)

        def predict(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
            assert value is not None, f"asked for {name}"
            return value if isinstance(value, Tensor) else value(z_t, t, scale=scale)

        return predict

    return Scores(**{name: score(name) for name in ("style", "style_source", "base", "fake")})


def tiny_module(**changes: Any) -> StyleMatching:
    """A style matching module on the Gaussian teacher; ``changes`` replace constructor arguments."""
    arguments: dict[str, Any] = {
        "generator": TinyGenerator(),
        "teacher": GaussianTeacher(),
        "fake_score": partial(GaussianFakeScore, std=1.0),
        "objective": StyleMatchingObjective(),
        "regularizer": SpectrumRegularizer(lambda_freq=0.01),
        "relevance": SemanticRelevance(),
        "timesteps": Narrowing(),
        "fake_timesteps": Uniform(),
        "warmup": ReconstructionWarmup(steps=2),
        "generator_options": GroupOptions(lr=1e-2, clip_norm=1.0),
        "fake_options": GroupOptions(lr=1e-2),
        "prompts": Prompts(words="cel", style="{words}, {caption}", source="{caption}", edit="Turn it into {words}"),
        "steps": 10,
        **changes,
    }
    return StyleMatching(**arguments)


def tiny_batch(iteration: int = 0, *, size: int = 4, height: int = 8, width: int = 12) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(iteration)
    return {
        "image": torch.rand(size, 3, height, width, generator=generator) * 2 - 1,
        "caption": ["a photo"] * size,
        "index": torch.arange(size),
        "position": torch.arange(size),
        "iteration": torch.full((size,), iteration),
    }


def tiny_fit(
    module: pl.LightningModule,
    steps: int,
    callbacks: Sequence[pl.Callback],
    batches: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train a module on tiny batches (by default `tiny_batch`), with nothing written and no bar."""
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **options,
    )
    if batches is None:
        batches = [tiny_batch(i) for i in range(steps * options.get("accumulate_grad_batches", 1))]
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer
