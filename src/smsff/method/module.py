"""The method, line by line: `StyleMatching.training_step`.

x --G--> y --encoder--> z --add noise(t)--> z_t --> eps_style   (style LoRA, frozen)
|                       |                    '----> eps_fake    (LoRA on the base, trained online on z)
'--encoder--> z_src ----+--add noise(t)--> z_src_t --> eps_base, twice (edit and empty prompt) --> relevance m
                        v
g = m * w(t) * (eps_style - eps_fake)       L = 1/2 mean((z - sg(z - g))^2) + lambda * spectrum(z, z_src, t)

In the warm-up L is mean |y - x|. In every step the fake score learns from its own loss on z, which does not reach G:
L_fake = mean((eps_fake(z_t) - noise)^2), with draws of t and noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smsff.generator.image import ImageGenerator
from smsff.method.draws import Draws
from smsff.method.gradient import Noised, Objective, Scores, latent_surrogate
from smsff.method.prompts import Conditions, Prompts, encode_prompts
from smsff.method.relevance import Relevance, RelevancePreview, relevance_at
from smsff.method.scores import FakeScore, batch_scores
from smsff.method.space import LatentSpace, PixelSpace, Pullback
from smsff.method.timesteps import Timesteps
from smsff.method.warmup import ReconstructionWarmup
from smsff.teacher.condition import Condition
from smsff.teacher.score import Teacher
from smsff.training.figures import in_several_processes, matching_figures, of_whole_batch
from smsff.training.module_state import read_state, write_state
from smsff.training.nonfinite import StepGuard, all_nan_unless_finite
from smsff.training.optimizer import GroupOptions, clip_and_guard, optimizer_and_schedule, update_average
from smsff.training.speed import PLAIN, Speed


class StyleMatching(pl.LightningModule):
    """Trains a generator to match the style score of a frozen teacher.

    Args:
        generator: x (B, 3, H, W) in [-1, 1] -> y of the same shape; with ``space == "latent"``, z (B, C, h, w) -> z.
        teacher: The frozen base and style scores, the encoder and the noise schedule.
        fake_score: Builds the online score from the teacher.
        objective: Turns scores into the gradient g; says whether it needs a fake score.
        regularizer: (z, z_src, t) -> (B,), already multiplied by its weight lambda.
        relevance: Map of where the style matters, (B, 1, h, w).
        timesteps: Draws t for the generator; counted in iterations after the warm-up.
        fake_timesteps: Draws t for the fake score's own loss, in a fixed range by default; counted over the whole run.
        warmup: Reconstruction until style matching begins, after a number of steps or at an error; a generator that
            starts as the identity needs little, but the fake score learns the photos meanwhile.
        generator_options, fake_options: Optimizer settings of the two parameter groups.
        prompts: Prompt templates.
        steps: Length of the run in optimizer steps, warm-up included.
        seed: Seed of every random draw.
        fake_draws: Independent (t, noise) draws of the fake's loss in each step; not used with ``speed.share_draw``.
        ema_decay: Largest decay of the average of the generator's weights (`update_average`); 0: it equals the weights.
        grid_jitter: Source and result are shifted by the same random offset, 0 to this minus 1 pixels, before they are
            encoded (not in the paper); 1 is no shift. The encoder's stride, times the patch size of a transformer.
        pullback: ``encoder``: back-propagate through the encoder (the paper); ``decoder``: D(z) - D(z - dL/dz)
            takes the place of that backward pass (`smsff.method.space`).
        speed: Memory format, compilation, and whether the fake's loss uses the prediction of the style gradient again.
        record: Plain containers stored in every checkpoint (generator, style, resolved configuration).
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        teacher: Teacher,
        fake_score: Callable[[Any], FakeScore],
        objective: Objective,
        regularizer: Callable[[Tensor, Tensor, Tensor], Tensor],
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
        pullback: Pullback = "encoder",
        speed: Speed = PLAIN,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        latent_space = getattr(generator, "space", "pixel") == "latent"
        self.space = LatentSpace(teacher.latent) if latent_space else PixelSpace(teacher.latent, pullback=pullback)
        speed.set_memory_format(generator, teacher)
        self.generator, self.teacher = generator, teacher
        self.fake = fake_score(teacher) if objective.needs_fake else None
        self.objective, self.regularizer, self.relevance = objective, regularizer, relevance
        self.timesteps, self.fake_timesteps, self.warmup = timesteps, fake_timesteps, warmup
        self.generator_options, self.fake_options = generator_options, fake_options
        self.prompts, self.steps, self.seed = prompts, steps, seed
        self.fake_draws, self.grid_jitter, self.speed = fake_draws, grid_jitter, speed
        self.preview = RelevancePreview(relevance, teacher, seed=seed) if relevance.needs_scores else None
        self.record, self.guard = dict(record or {}), StepGuard()
        self.ema_decay = ema_decay
        self.ema = AveragedModel(generator, use_buffers=True)
        self.ema.requires_grad_(False)
        speed.prepare(generator, teacher)  # last: the average shall not be compiled
        self.strict_loading = False  # the teacher is in no checkpoint; on_load_checkpoint does the checking

    # ------------------------------------------------------------------------------------------------- the method

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of generator and fake score for one batch: pictures (B, 3, H, W) in [-1, 1] and their captions."""
        draws, cond = Draws.of(batch, self.seed), self.encode_prompts(batch["caption"])
        offset = draws.offset(self.grid_jitter)
        scores = batch_scores(self.teacher, self.fake, cond, share=self.speed.share_draw)

        x = self.space.input(batch["image"])
        y = self.generator(x)
        z = self.space.encode(y, offset)
        with torch.no_grad():
            z_src = self.space.encode(x, offset)
        # `computed`, in the order of computation: where a NaN or an Inf came up first, should the step hold one
        computed, drawn = {"source_latent": z_src, "generator": y, "latent": z}, {}
        if self.warmup.active(self.global_step):
            loss = self.warmup.loss(y, x).mean()
            figures = {"reconstruction": loss}
        else:
            iteration, length = self.global_step - self.warmup.end, self.steps - self.warmup.end
            t = self.timesteps(draws.uniform("t", per=self.timesteps.per), iteration, length)
            noise = draws.normal("noise", tuple(z.shape[1:]))  # the same for both latents
            at = Noised(z.detach(), z_src, noise, t, self.teacher.schedule)
            with torch.no_grad():
                m = relevance_at(self.relevance, self.teacher.base, at, cond)
                g = m * self.objective.gradient(scores, at)  # w(t) (eps_style - eps_fake)
            matching, spectrum = latent_surrogate(z, g).mean(), self.regularizer(z, z_src, t).mean()
            loss = self.space.output_loss(matching + spectrum, z, y, offset)
            figures = {"matching": matching, "spectrum": spectrum, **matching_figures(m, g, t)}
            computed, drawn = {**computed, "relevance": m, **scores.seen, "gradient": g}, {"t": t}
        if self.fake is not None:
            losses, drawn["fake_t"] = self.fake_losses(self.fake, z.detach(), draws, cond.source, scores)
            figures["fake"] = losses.mean()
            computed["fake_loss"] = losses.unflatten(0, (-1, len(z))).T  # (B, K)
            loss = loss + figures["fake"]
        self.guard.see(batch, computed, drawn)
        figures = self.log_figures(len(batch["image"]), {"loss": loss, **figures})
        self.warmup.update(figures.get("reconstruction"), self.global_step)
        return all_nan_unless_finite(loss)

    def fake_losses(
        self, fake: FakeScore, z: Tensor, draws: Draws, source: Condition, scores: Scores
    ) -> tuple[Tensor, Tensor]:
        """Denoising losses (K B,) of the fake score on the generator's latents, K draws of (t, noise), and their t."""
        if scores.shared:
            ((eps, t),) = scores.shared
            return fake.loss_of(eps, draws.normal("noise", tuple(z.shape[1:])), t), t
        k = self.fake_draws
        u = torch.cat([draws.uniform(f"fake_t/{i}", per=self.fake_timesteps.per) for i in range(k)])
        noise = torch.cat([draws.normal(f"fake_noise/{i}", tuple(z.shape[1:])) for i in range(k)])
        t = self.fake_timesteps(u, self.global_step, self.steps)
        return fake.loss(z.repeat(k, 1, 1, 1), noise, t, source.repeat(k)), t

    def encode_prompts(self, captions: Sequence[str]) -> Conditions:
        """Prompt embeddings for one caption a sample."""
        return encode_prompts(self.teacher, self.prompts, captions, self.device)

    def log_figures(self, count: int, figures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Log the loss and its parts; they are returned as those of the whole batch, whatever number of processes."""
        if in_several_processes():
            figures = of_whole_batch(figures, self.all_gather)
        for name, value in figures.items():
            self.log(f"train/{name}", value.detach().float(), prog_bar=name in ("loss", "fake"), batch_size=count)
        return figures

    # ----------------------------------------------------------------------------------- Lightning: the optimizer

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """The pictures go to the device; what names them stays: a step that read it there would wait for the device."""
        return {**batch, "image": super().transfer_batch_to_device(batch["image"], device, dataloader_idx)}

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], GroupOptions]]:
        """What is trained, with its options: the generator and, if the objective needs one, the fake score."""
        groups = {"generator": (list(self.generator.parameters()), self.generator_options)}
        if self.fake is not None:
            groups["fake"] = ([parameter for _, parameter in self.fake.trainable_parameters()], self.fake_options)
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One AdamW with the parameter groups; the schedule gets the length of the run."""
        return optimizer_and_schedule(self.parameter_groups(), self.steps)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each group by its own norm; a step whose gradients are not finite is skipped."""
        clip_and_guard(self, self.guard, optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: before any callback runs, so that a checkpoint never misses the average of its step."""
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.generator, ImageGenerator):  # pixels stay colours
            self.generator.value.data.clamp_(-1, 1)
        update_average(self.ema, self.generator, decay=self.ema_decay, skip=self.guard.found_inf)

    # ------------------------------------------------------------------------- Lightning: pictures and checkpoints

    def stylize(self, x: Tensor) -> Tensor:
        """The averaged generator's picture, (B, 3, H, W) in [-1, 1]."""
        return self.space.picture(self.ema, x)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.stylize(batch["image"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Source, result and (if it needs scores) relevance map of whole pictures."""
        x = batch["image"]
        pictures = {"source": x, "result": self.stylize(x)}
        self.log("val/change", (pictures["result"] - x).abs().mean() / 2, batch_size=len(x), sync_dist=True)
        if self.preview is not None:
            pictures["relevance"] = self.preview(x, self.encode_prompts(batch["caption"]))
        return {**pictures, "name": batch["name"]}

    def saved_keys(self) -> set[str]:
        """Names in the state dict that belong to a checkpoint: all but the teacher's frozen weights.

        The trained LoRA of the fake score is part of the teacher's network, hence the names under ``teacher.``.
        """
        trained = {id(parameter) for parameters, _ in self.parameter_groups().values() for parameter in parameters}
        kept = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        return kept | {name for name in self.state_dict() if not name.startswith("teacher.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        write_state(checkpoint, self.saved_keys(), self.record, self.guard)
        checkpoint["warmup"] = self.warmup.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave a trained weight unset, or that has weights for something else."""
        self.warmup.load_state_dict(checkpoint.get("warmup", self.warmup.state_dict()))
        others = "another generator, objective or fake_score"
        read_state(checkpoint, self.saved_keys(), self.state_dict(), self.guard, written_with=others)
