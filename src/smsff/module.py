"""The training loop's one step: generator, encoder, noise, three scores, gradient, loss.

x --G--> y --encoder--> z --add noise(t)--> z_t --> eps_style   (style LoRA, frozen)
|                       |                    '----> eps_fake    (LoRA on the base, trained online on z)
'--encoder--> z_src ----+--add noise(t)--> z_src_t --> eps_base, twice (edit and empty prompt) --> relevance m
                        v
g = m * w(t) * (eps_style - eps_fake)       L = 1/2 mean((z - sg(z - g))^2) + lambda * spectrum(z, z_src, t)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smsff import __version__
from smsff.errors import UserError
from smsff.generator.image import ImageGenerator
from smsff.objective.sms import StyleMatchingObjective, latent_surrogate
from smsff.objective.warmup import ReconstructionWarmup
from smsff.optimizer import GroupOptions, build_optimizer, build_schedule, clip_groups, ema_with_warmup
from smsff.randomness import keyed_rand, keyed_randn
from smsff.teacher.latent import translate
from smsff.teacher.score import Teacher, guided

PREVIEW_SIZE = 512
"""Longest side, in pixels, at which the relevance map of a validation picture is computed."""


class FakeScore(Protocol):
    """A score that is trained online to follow the generator's output."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Timesteps(Protocol):
    def __call__(self, u: Tensor, iteration: int, total: int) -> Tensor: ...


class Regularizer(Protocol):
    def __call__(self, z: Tensor, z_src: Tensor, t: Tensor) -> Tensor: ...


class Relevance(Protocol):
    needs_scores: bool

    def __call__(self, eps_edit: Tensor, eps_null: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompt templates; ``{caption}`` is the image's caption, ``{words}`` the words of the style.

    Attributes:
        words: What the style is called, with the trigger words of its LoRA.
        style: Condition of the style score.
        source: Condition of the fake score.
        edit: Prompt whose difference from the empty prompt gives the relevance map.
    """

    words: str
    style: str
    source: str
    edit: str

    def __post_init__(self) -> None:
        for name in ("style", "source", "edit"):
            try:
                self.fill(getattr(self, name), "")
            except (KeyError, IndexError, ValueError) as error:
                template = getattr(self, name)
                raise UserError(
                    f"prompts.{name}={template!r}: only {{caption}} and {{words}} can be filled in"
                ) from error

    def fill(self, template: str, caption: str) -> str:
        return template.format(caption=caption, words=self.words)

    def of(self, caption: str) -> tuple[str, str, str]:
        """Style, source and edit prompt for one caption."""
        return self.fill(self.style, caption), self.fill(self.source, caption), self.fill(self.edit, caption)


class Conditions(NamedTuple):
    """Prompt embeddings of a batch, each (B, L, D)."""

    style: Tensor
    style_null: Tensor
    source: Tensor
    edit: Tensor
    null: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch, as a pure function of (seed, iteration, position in the global batch)."""

    seed: int
    iteration: int
    positions: Sequence[int]
    like: Tensor

    def uniform(self, stream: str, *, per: str = "sample") -> Tensor:
        """(B,) in [0, 1); with per="batch" the same number for the whole global batch."""
        positions = self.positions if per == "sample" else [0] * len(self.positions)
        return keyed_rand(self.seed, stream, self.iteration, positions).to(self.like.device)

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape)."""
        return keyed_randn(self.seed, stream, self.iteration, self.positions, shape).to(self.like)


class StyleMatching(pl.LightningModule):
    """Trains a generator to match the style score of a frozen teacher.

    Args:
        generator: x (B, 3, H, W) in [-1, 1] -> y of the same shape; with ``space == "latent"``, z (B, C, h, w) -> z.
        teacher: The frozen base and style scores, the encoder and the noise schedule.
        fake_score: Builds the online score from the teacher.
        objective: Turns the difference of two scores into the gradient g.
        regularizer: (z, z_src, t) -> (B,), weighted by ``objective.lambda_freq``.
        relevance: Map of where the style matters, (B, 1, h, w).
        timesteps: Draws t for the generator; counted in iterations after the warm-up.
        fake_timesteps: Draws t for the fake score's own loss.
        warmup: Reconstruction before style matching begins.
        generator_options, fake_options: Optimizer settings of the two parameter groups.
        prompts: Prompt templates.
        steps: Length of the run in optimizer steps, warm-up included.
        seed: Seed of every random draw.
        fake_draws: Independent (t, noise) draws of the fake's loss in each step.
        ema_decay: Largest decay of the average of the generator's weights (`ema_with_warmup`); 0 follows the weights
            themselves.
        grid_jitter: Pictures are encoded at a random offset of less than so many pixels, the same for source and result
            (ours); 1 is none. It should cover the strides of encoder and U-Net.
        record: Plain containers stored in every checkpoint (generator, style, resolved configuration).
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        teacher: Teacher,
        fake_score: Callable[[Any], FakeScore],
        objective: StyleMatchingObjective,
        regularizer: Regularizer,
        relevance: Relevance,
        timesteps: Timesteps,
        fake_timesteps: Timesteps,
        warmup: ReconstructionWarmup,
        generator_options: GroupOptions,
        fake_options: GroupOptions,
        prompts: Prompts,
        steps: int,
        seed: int = 0,
        fake_draws: int = 1,
        ema_decay: float = 0.999,
        grid_jitter: int = 8,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if steps <= warmup.steps:
            raise UserError(f"steps={steps} must be more than warmup.steps={warmup.steps}")
        if fake_draws < 1:
            raise UserError(f"fake_draws={fake_draws} must be at least 1")
        if grid_jitter < 1:
            raise UserError(f"grid_jitter={grid_jitter} must be at least 1 (1 is none)")
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay={ema_decay} must lie in [0, 1)")
        self.generator = generator
        self.teacher = teacher
        self.fake = fake_score(teacher)
        self.objective, self.regularizer, self.relevance = objective, regularizer, relevance
        self.timesteps, self.fake_timesteps, self.warmup = timesteps, fake_timesteps, warmup
        self.generator_options, self.fake_options = generator_options, fake_options
        self.prompts = prompts
        self.steps, self.seed, self.fake_draws = steps, seed, fake_draws
        self.grid_jitter = grid_jitter
        self.record = dict(record or {})
        self.ema = AveragedModel(generator, multi_avg_fn=ema_with_warmup(ema_decay), use_buffers=True)
        self.ema.requires_grad_(False)
        self.strict_loading = False  # the teacher is in no checkpoint; on_load_checkpoint does the checking

    # ------------------------------------------------------------------------------------------------ the data flow

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x = batch["image"]
        draws = Draws(self.seed, int(batch["iteration"][0]), batch["position"].tolist(), like=x)
        conditions = self.encode_prompts(batch["caption"])

        offset = self.grid_offset(draws)
        z_src = self.encode_source(translate(x, offset))
        y = self.generator(z_src if self.in_latent_space else x)
        z = y if self.in_latent_space else self.teacher.latent.encode(translate(y, offset))
        if self.warmup.active(self.global_step):
            generator_loss = self.reconstruction_loss(y, z_src if self.in_latent_space else x)
        else:
            generator_loss = self.matching_loss(z, z_src, draws, conditions)
        fake_loss = self.fake_loss(z.detach(), draws, conditions.source)

        loss = generator_loss + fake_loss
        self.log_dict({"train/loss": loss, "train/fake": fake_loss}, prog_bar=True, batch_size=len(x))
        return loss

    def matching_loss(self, z: Tensor, z_src: Tensor, draws: Draws, cond: Conditions) -> Tensor:
        """Style matching plus spectrum term, mean over the batch; z and z_src (B, C, h, w)."""
        schedule, objective = self.teacher.schedule, self.objective
        u = draws.uniform("t", per=getattr(self.timesteps, "per", "sample"))
        t = self.timesteps(u, self.global_step - self.warmup.steps, self.steps - self.warmup.steps)
        noise = draws.normal("noise", tuple(z.shape[1:]))  # the same for both latents
        with torch.no_grad():
            z_t, z_src_t = schedule.add_noise(z, noise, t), schedule.add_noise(z_src, noise, t)
            eps_style = guided(self.teacher.style, z_t, t, cond.style, cond.style_null, objective.style_guidance)
            eps_fake = guided(self.fake, z_t, t, cond.source, cond.null, objective.fake_guidance)
            m = self.relevance_map(z_src_t, t, cond)
            g = objective.gradient(eps_style, eps_fake, t=t, schedule=schedule, relevance=m, z=z, z_t=z_t)
        matching = latent_surrogate(z, g).mean()
        spectrum = self.regularizer(z, z_src, t).mean()
        self.log_parts(t, matching=matching, spectrum=spectrum, relevance=m.mean(), gradient=g.square().mean().sqrt())
        return matching + objective.lambda_freq * spectrum

    def fake_loss(self, z: Tensor, draws: Draws, source: Tensor) -> Tensor:
        """Denoising loss of the fake score on the generator's latents, mean over the batch and the draws."""
        k = self.fake_draws
        per = getattr(self.fake_timesteps, "per", "sample")
        u = torch.cat([draws.uniform(f"fake_t/{i}", per=per) for i in range(k)])
        noise = torch.cat([draws.normal(f"fake_noise/{i}", tuple(z.shape[1:])) for i in range(k)])
        t = self.fake_timesteps(u, self.global_step, self.steps)
        return self.fake.loss(z.repeat(k, 1, 1, 1), noise, t, source.repeat(k, 1, 1)).mean()

    def reconstruction_loss(self, y: Tensor, target: Tensor) -> Tensor:
        """Warm-up: the generator's output against its input, mean over the batch."""
        loss = self.warmup.loss(y, target).mean()
        self.log("train/reconstruction", loss, batch_size=len(y))
        return loss

    def relevance_map(self, z_src_t: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        """Where the edit prompt changes the base's mind about the noised source, (B, 1, h, w), without gradient."""
        if not self.relevance.needs_scores:
            return self.relevance(z_src_t, z_src_t)
        both = self.teacher.base(torch.cat([z_src_t, z_src_t]), torch.cat([t, t]), torch.cat([cond.edit, cond.null]))
        eps_edit, eps_null = both.chunk(2)
        return self.relevance(eps_edit, eps_null)

    @property
    def in_latent_space(self) -> bool:
        """Whether the generator maps latents to latents instead of pictures to pictures."""
        return getattr(self.generator, "space", "pixel") == "latent"

    def grid_offset(self, draws: Draws) -> Tensor:
        """Random offset (B, 2) in pixels of each picture before it is encoded; on the CPU, which does the cutting."""
        reach = 1 if self.in_latent_space else self.grid_jitter
        sides = [keyed_rand(draws.seed, f"grid/{side}", draws.iteration, draws.positions) for side in ("y", "x")]
        return (torch.stack(sides, dim=1) * reach).long()

    @torch.no_grad()
    def encode_source(self, x: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of source pictures, without gradient."""
        return self.teacher.latent.encode(x)

    def encode_prompts(self, captions: Sequence[str]) -> Conditions:
        """Prompt embeddings for one caption a sample; the style score's go through the style's own text encoder."""
        style, source, edit = zip(*map(self.prompts.of, captions), strict=True)
        empty = [""] * len(captions)
        for_style = self.teacher.encode_prompts([*style, *empty], style=True).to(self.device)
        for_base = self.teacher.encode_prompts([*source, *edit, *empty]).to(self.device)
        return Conditions(*for_style.chunk(2), *for_base.chunk(3))

    def log_parts(self, t: Tensor, **parts: Tensor) -> None:
        times = {"t_min": t.min(), "t_mean": t.float().mean(), "t_max": t.max()}
        figures = {f"train/{name}": value.detach().float() for name, value in {**parts, **times}.items()}
        self.log_dict(figures, batch_size=len(t))

    # ------------------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One AdamW, two groups; the schedule is told the length of the run instead of asking the trainer for it."""
        fake = [parameter for _, parameter in self.fake.trainable_parameters()]
        optimizer = build_optimizer(
            {"generator": (self.generator.parameters(), self.generator_options), "fake": (fake, self.fake_options)}
        )
        schedule = build_schedule(optimizer, (self.generator_options, self.fake_options), self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each group by its own norm; the norms before clipping are logged."""
        norms = clip_groups(optimizer)
        self.log_dict({f"train/grad_norm_{name}": norm for name, norm in norms.items()})
        self.log_dict({f"train/lr_{group['name']}": group["lr"] for group in optimizer.param_groups})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: before any callback runs, so that a checkpoint never misses the average of its step."""
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.generator, ImageGenerator):  # pixels stay colours
            self.generator.value.data.clamp_(-1, 1)
        self.ema.update_parameters(self.generator)

    # ------------------------------------------------------------------------------------------- pictures to look at

    def stylize(self, x: Tensor) -> Tensor:
        """The averaged generator's picture, (B, 3, H, W) in [-1, 1]."""
        if not self.in_latent_space:
            return self.ema(x).clamp(-1, 1)
        picture = self.teacher.latent.decode(self.ema(self.encode_source(x)))
        return picture[..., : x.shape[-2], : x.shape[-1]].clamp(-1, 1)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Source, result and (if it costs scores at all) relevance map of whole pictures."""
        x = batch["image"]
        pictures = {"source": x, "result": self.stylize(x)}
        self.log("val/change", (pictures["result"] - x).abs().mean() / 2, batch_size=len(x), sync_dist=True)
        if self.relevance.needs_scores:
            pictures["relevance"] = self.preview_relevance(x, batch["caption"])
        return {**pictures, "name": batch["name"]}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.stylize(batch["image"])

    def preview_relevance(self, x: Tensor, captions: Sequence[str]) -> Tensor:
        """Relevance map (B, 1, H, W) of pictures at a quarter of the noise levels, computed at `PREVIEW_SIZE`."""
        size, multiple = x.shape[-2:], 8 * self.teacher.latent.downscale
        shrink = min(1.0, PREVIEW_SIZE / max(size))
        small = [max(1, round(side * shrink / multiple)) * multiple for side in size]
        z = self.encode_source(F.interpolate(x, small, mode="bilinear", antialias=True))
        t = torch.full((len(x),), self.teacher.schedule.num_steps // 4, device=x.device)
        noise = Draws(self.seed, 0, range(len(x)), like=z).normal("preview", tuple(z.shape[1:]))
        z_t = self.teacher.schedule.add_noise(z, noise, t)
        m = self.relevance_map(z_t, t, self.encode_prompts(captions))
        return F.interpolate(m / m.amax((1, 2, 3), keepdim=True).clamp(min=1e-12), size, mode="bilinear")

    # -------------------------------------------------------------------------------------------------- checkpoints

    def saved_keys(self) -> set[str]:
        """Names in the state dict that belong to a checkpoint: everything but the frozen teacher."""
        trained = {id(parameter) for _, parameter in self.fake.trainable_parameters()}
        kept = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        return kept | {name for name in self.state_dict() if not name.startswith("teacher.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keys = self.saved_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keys}
        checkpoint["hyper_parameters"] = {**self.record, "smsff_version": __version__}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave a trained weight unset, or that has weights for something else."""
        state, own = checkpoint["state_dict"], self.state_dict()
        keys = self.saved_keys()
        missing, surplus = sorted(keys - state.keys()), sorted(state.keys() - keys)
        misfits = [k for k in sorted(keys & state.keys()) if state[k].shape != own[k].shape]
        for what, names in (("lacks", missing), ("has unknown", surplus), ("has another shape of", misfits)):
            if names:
                raise UserError(
                    f"ckpt_path: the checkpoint {what} {len(names)} of this run's {len(keys)} tensors (first: "
                    f"{names[0]}); it was written with another generator or fake_score configuration"
                )
