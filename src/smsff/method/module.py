"""The training loop's one step: generator, encoder, noise, three scores, gradient, loss.

x --G--> y --encoder--> z --add noise(t)--> z_t --> eps_style   (style LoRA, frozen)
|                       |                    '----> eps_fake    (LoRA on the base, trained online on z)
'--encoder--> z_src ----+--add noise(t)--> z_src_t --> eps_base, twice (edit and empty prompt) --> relevance m
                        v
g = m * w(t) * (eps_style - eps_fake)       L = 1/2 mean((z - sg(z - g))^2) + lambda * spectrum(z, z_src, t)

This is style matching; other objectives (docs/objectives.md) ask other scores for their g, and not all train a fake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smsff import __version__
from smsff.errors import UserError
from smsff.generator.image import ImageGenerator
from smsff.method.gradient import Noised, Objective, Predict, Scores, latent_surrogate
from smsff.method.pullback import Pullback, decoded_step
from smsff.method.warmup import ReconstructionWarmup
from smsff.randomness import keyed_rand, keyed_randn
from smsff.teacher.condition import Condition
from smsff.teacher.latent import translate
from smsff.teacher.score import Score, Teacher, guided, guided_with_graph
from smsff.training.figures import of_whole_batch
from smsff.training.nonfinite import StepGuard, spread
from smsff.training.optimizer import GroupOptions, build_optimizer, build_schedule, clip_groups, update_average
from smsff.training.speed import PLAIN, Speed, to_device

PREVIEW_SIZE = 512
"""Longest side, in pixels, at which the relevance map of a validation picture is computed."""


class FakeScore(Protocol):
    """A score that is trained online to follow the generator's output."""

    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor: ...

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> Tensor: ...

    def loss_of(self, eps: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Timesteps(Protocol):
    @property
    def per(self) -> Literal["sample", "batch"]: ...

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
    """Prompt embeddings of a batch, each of B rows."""

    style: Condition
    style_null: Condition
    style_source: Condition
    source: Condition
    edit: Condition
    null: Condition


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
        return to_device(keyed_rand(self.seed, stream, self.iteration, positions), self.like.device)

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape)."""
        draws = keyed_randn(self.seed, stream, self.iteration, self.positions, shape)
        return to_device(draws, self.like.device).to(self.like.dtype)


def in_several_processes() -> bool:
    """Whether this process trains together with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def no_fake(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """The fake of an objective that said it needs none."""
    raise RuntimeError("this objective has needs_fake = False, so no fake score is trained that it could ask")


class StyleMatching(pl.LightningModule):
    """Trains a generator to match the style score of a frozen teacher.

    Args:
        generator: x (B, 3, H, W) in [-1, 1] -> y of the same shape; with ``space == "latent"``, z (B, C, h, w) -> z.
        teacher: The frozen base and style scores, the encoder and the noise schedule.
        fake_score: Builds the online score from the teacher.
        objective: Turns scores into the gradient g; says whether it needs a fake score, or there is none.
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
        ema_decay: Largest decay of the average of the generator's weights (`update_average`); 0 follows the weights
            themselves.
        grid_jitter: Pictures are encoded at a random offset of less than so many pixels, the same for source and result
            (ours); 1 is none. It should cover the strides of encoder and U-Net.
        pullback: How a step in latent space reaches the picture: through the encoder's gradient (the paper) or through
            the decoder (`smsff.method.pullback`).
        speed: What is shared, and in which form the networks run.
        record: Plain containers stored in every checkpoint (generator, style, resolved configuration).
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        teacher: Teacher,
        fake_score: Callable[[Any], FakeScore],
        objective: Objective,
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
        pullback: Pullback = "encoder",
        speed: Speed = PLAIN,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if steps <= warmup.steps:
            raise UserError(f"steps={steps} must be more than warmup.steps={warmup.steps}")
        if fake_draws < 1:
            raise UserError(f"fake_draws={fake_draws} must be at least 1")
        if grid_jitter < 1:
            raise UserError(f"grid_jitter={grid_jitter} must be at least 1 (1 is none)")
        if pullback not in get_args(Pullback):
            raise UserError(f"pullback={pullback!r} is not one of {', '.join(get_args(Pullback))}")
        if not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay={ema_decay} must lie in [0, 1)")
        if speed.share_draw and fake_draws > 1:
            raise UserError(
                f"speed.share_draw=true and fake_draws={fake_draws}: a shared draw is one; use fake_draws=1"
            )
        speed.lay_out(generator, teacher)
        self.generator = generator
        self.teacher = teacher
        self.fake = fake_score(teacher) if objective.needs_fake else None
        self.objective, self.regularizer, self.relevance = objective, regularizer, relevance
        self.timesteps, self.fake_timesteps, self.warmup = timesteps, fake_timesteps, warmup
        self.generator_options, self.fake_options = generator_options, fake_options
        self.prompts = prompts
        self.steps, self.seed = steps, seed
        self.fake_draws = fake_draws
        self.grid_jitter, self.pullback = grid_jitter, pullback
        self.speed = speed
        self.shared: tuple[Tensor, Tensor] | None = None  # the fake's prediction with its graph, and t
        # latents of the one picture of a generator of latents, and of what its relevance is shown for
        self.source: Tensor | None
        self.preview: Tensor | None
        for name in ("source", "preview"):
            self.register_buffer(name, None, persistent=False)
        self.record = dict(record or {})
        self.guard, self.figures = StepGuard(), dict[str, Tensor]()
        self.ema_decay = ema_decay
        self.ema = AveragedModel(generator, use_buffers=True)
        self.ema.requires_grad_(False)
        speed.prepare(generator, teacher)  # last: the average shall not be compiled
        self.strict_loading = False  # the teacher is in no checkpoint; on_load_checkpoint does the checking

    # ------------------------------------------------------------------------------------------------ the data flow

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """The pictures go to the device; what names them stays: a step that read it there would wait for the device."""
        return {**batch, "image": super().transfer_batch_to_device(batch["image"], device, dataloader_idx)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x = batch["image"]
        draws = Draws(self.seed, int(batch["iteration"][0]), batch["position"].tolist(), like=x)
        self.guard.begin(batch)
        cond = self.encode_prompts(batch["caption"])
        offset = self.grid_offset(draws)

        z_src = self.source_latents(x, offset)
        y = self.generator(z_src if self.in_latent_space else x)
        y_moved = y if self.in_latent_space else translate(y, offset)
        z = y if self.in_latent_space else self.encode_result(y_moved)
        self.guard.see(source_latent=z_src, generator=y, latent=z)
        if self.warmup.active(self.global_step):
            loss = self.reconstruction_loss(y, z_src if self.in_latent_space else x)
        else:
            loss = self.matching_loss(z, z_src, draws, cond)
            if self.through_decoder:
                step = self.decoded_step(loss, z, y_moved)
                loss = latent_surrogate(y_moved, step).mean()
        if self.fake is not None:
            loss = loss + self.fake_loss(self.fake, z.detach(), draws, cond.source)
        self.log_figures(len(x), loss=loss)
        return spread(loss)

    def matching_loss(self, z: Tensor, z_src: Tensor, draws: Draws, cond: Conditions) -> Tensor:
        """The objective plus the spectrum term, mean over the batch; z and z_src (B, C, h, w)."""
        u = draws.uniform("t", per=self.timesteps.per)
        t = self.timesteps(u, self.global_step - self.warmup.end, self.steps - self.warmup.end)
        noise = draws.normal("noise", tuple(z.shape[1:]))  # the same for both latents
        with torch.no_grad():
            at = Noised(z.detach(), z_src, noise, t, self.teacher.schedule)
            m = self.relevance_map(at, cond)
            self.guard.see(relevance=m)
            g = m * self.objective.gradient(self.scores(cond), at)
        self.guard.see(gradient=g)
        self.guard.drew(t=t)
        matching = latent_surrogate(z, g).mean()
        spectrum = self.regularizer(z, z_src, t).mean()
        self.figures |= {"matching": matching, "spectrum": spectrum, "relevance": m.mean()}
        self.figures |= {"gradient": g.square().mean().sqrt()}
        self.figures |= {"t_min": t.min(), "t_mean": t.float().mean(), "t_max": t.max()}
        return matching + self.objective.lambda_freq * spectrum

    def decoded_step(self, loss: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """The step of pictures y (B, 3, H, W) that the gradient of `loss`, which hangs on z alone, asks for."""
        (gradient,) = torch.autograd.grad(loss, z)
        step = gradient * z.numel()  # of the mean over all elements, as g is
        return decoded_step(self.teacher.latent.decode, z.detach(), step, (y.shape[-2], y.shape[-1]))

    def scores(self, cond: Conditions) -> Scores:
        """The models under the prompts of a batch."""
        teacher = self.teacher
        return Scores(
            style=self.predict("style_score", teacher.style, cond.style, cond.style_null),
            style_source=self.predict("style_source_score", teacher.style, cond.style_source, cond.style_null),
            base=self.predict("base_score", teacher.base, cond.source, cond.null),
            fake=self.predict("fake_score", self.fake or no_fake, cond.source, cond.null, share=self.speed.share_draw),
        )

    def predict(self, name: str, score: Score, cond: Condition, uncond: Condition, *, share: bool = False) -> Predict:
        """A score under the prompts of a batch, on whose numbers the guard has an eye.

        Args:
            share: Leave the prediction with its graph, and t, in `shared`, for the fake's loss.
        """

        def prediction(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
            if share:
                eps, kept = guided_with_graph(score, z_t, t, cond, uncond, scale)
                self.shared = (kept, t)
            else:
                eps = guided(score, z_t, t, cond, uncond, scale)
            self.guard.see(**{name: eps})
            return eps

        return prediction

    def fake_loss(self, fake: FakeScore, z: Tensor, draws: Draws, source: Condition) -> Tensor:
        """Denoising loss of the fake score on the generator's latents, mean over the batch and the draws."""
        k = self.fake_draws
        if self.shared is not None:
            (eps, t), self.shared = self.shared, None
            losses = fake.loss_of(eps, draws.normal("noise", tuple(z.shape[1:])), t)
        else:
            u = torch.cat([draws.uniform(f"fake_t/{i}", per=self.fake_timesteps.per) for i in range(k)])
            noise = torch.cat([draws.normal(f"fake_noise/{i}", tuple(z.shape[1:])) for i in range(k)])
            t = self.fake_timesteps(u, self.global_step, self.steps)
            losses = fake.loss(z.repeat(k, 1, 1, 1), noise, t, source.repeat(k))
        self.guard.see(fake_loss=losses.unflatten(0, (k, -1)).T)
        self.guard.drew(fake_t=t)
        self.figures["fake"] = losses.mean()
        return self.figures["fake"]

    def reconstruction_loss(self, y: Tensor, target: Tensor) -> Tensor:
        """Warm-up: the generator's output against its input, mean over the batch."""
        loss = self.figures["reconstruction"] = self.warmup.loss(y, target).mean()
        if self.warmup.until is not None:
            whole = of_whole_batch({"reconstruction": loss}, self.all_gather) if in_several_processes() else {}
            self.warmup.record(float(whole.get("reconstruction", loss).detach()), self.global_step)
        return loss

    def relevance_map(self, at: Noised, cond: Conditions) -> Tensor:
        """Where the edit prompt changes the base's mind about the noised source, (B, 1, h, w), without gradient."""
        if not self.relevance.needs_scores:
            return self.relevance(at.z, at.z)
        return self.relevance(*self.edit_predictions(at, cond.edit, cond.null))

    def edit_predictions(self, at: Noised, edit: Condition, null: Condition) -> tuple[Tensor, Tensor]:
        """The base on the noised source under edit and empty prompt, in one call; (B, C, h, w) each."""
        twice = torch.cat([at.z_src_t, at.z_src_t]), torch.cat([at.t, at.t])
        eps_edit, eps_null = self.teacher.base(*twice, Condition.cat([edit, null])).chunk(2)
        return eps_edit, eps_null

    @property
    def in_latent_space(self) -> bool:
        """Whether the generator maps latents to latents instead of pictures to pictures."""
        return getattr(self.generator, "space", "pixel") == "latent"

    def grid_offset(self, draws: Draws) -> Tensor:
        """Random offset (B, 2) in pixels of each picture before it is encoded; on the CPU, which does the cutting."""
        reach = 1 if self.in_latent_space else self.grid_jitter
        sides = [keyed_rand(draws.seed, f"grid/{side}", draws.iteration, draws.positions) for side in ("y", "x")]
        return (torch.stack(sides, dim=1) * reach).long()

    @property
    def through_decoder(self) -> bool:
        """Whether steps in latent space reach the picture through the decoder (`smsff.method.pullback`)."""
        return self.pullback == "decoder" and not self.in_latent_space

    @property
    def needs_decoder(self) -> bool:
        """Whether latents become pictures anywhere in the run."""
        return self.in_latent_space or self.through_decoder

    @property
    def needs_encoder(self) -> bool:
        """Whether pictures become latents anywhere in the run, once that of a generator of latents is held."""
        return not self.in_latent_space

    def hold(self, picture: Tensor) -> None:
        """Encode the one picture (1, 3, H, W) of a generator of latents for the whole run."""
        self.source = self.encode_source(picture)
        if self.relevance.needs_scores:
            self.preview = self.preview_latents(picture)

    def encode_result(self, y: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of the generator's pictures, or a leaf of their own in the decoder's way."""
        if not self.through_decoder:
            return self.teacher.latent.encode(y)
        return self.encode_source(y).requires_grad_()

    @torch.no_grad()
    def encode_source(self, x: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of source pictures, without gradient."""
        return self.teacher.latent.encode(x)

    def source_latents(self, x: Tensor, offset: Tensor) -> Tensor:
        """Latents of the sources at their offsets. A generator of latents has one source: it is encoded once."""
        if not self.in_latent_space:
            return self.encode_source(translate(x, offset))
        if self.source is None:
            self.source = self.encode_source(x)
        return self.source

    def encode_prompts(self, captions: Sequence[str]) -> Conditions:
        """Prompt embeddings for one caption a sample; the style score's go through the style's own text encoder."""
        style, source, edit = zip(*map(self.prompts.of, captions), strict=True)
        empty = [""] * len(captions)
        for_style = self.teacher.encode_prompts([*style, *empty, *source], style=True).to(self.device)
        for_base = self.teacher.encode_prompts([*source, *edit, *empty]).to(self.device)
        return Conditions(*for_style.chunk(3), *for_base.chunk(3))

    def log_figures(self, count: int, *, loss: Tensor) -> None:
        """Log the loss and what was noted on the way to it; with several processes that of the whole batch."""
        figures, self.figures = {"loss": loss, **self.figures}, {}
        if in_several_processes():
            figures = of_whole_batch(figures, self.all_gather)
        for name, value in figures.items():
            self.log(f"train/{name}", value.detach().float(), prog_bar=name in ("loss", "fake"), batch_size=count)

    # ------------------------------------------------------------------------------------------------- optimisation

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], GroupOptions]]:
        """What is trained, with its options: the generator and, if the objective needs one, the fake score."""
        groups = {"generator": (list(self.generator.parameters()), self.generator_options)}
        if self.fake is not None:
            groups["fake"] = ([parameter for _, parameter in self.fake.trainable_parameters()], self.fake_options)
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One AdamW with the parameter groups; the schedule gets the length of the run."""
        groups = self.parameter_groups()
        optimizer = build_optimizer(groups)
        schedule = build_schedule(optimizer, [options for _, options in groups.values()], self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each group by its own norm; a step whose gradients are not finite is skipped."""
        norms = clip_groups(optimizer)
        self.guard.decide(optimizer, norms, step=self.global_step)
        self.log_dict({f"train/grad_norm_{name}": norm for name, norm in norms.items()})
        # as tensors of the main memory: a number would be sent to the device, which waits
        self.log_dict({f"train/lr_{group['name']}": torch.tensor(group["lr"]) for group in optimizer.param_groups})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: before any callback runs, so that a checkpoint never misses the average of its step."""
        super().optimizer_step(*args, **kwargs)
        if isinstance(self.generator, ImageGenerator):  # pixels stay colours
            self.generator.value.data.clamp_(-1, 1)
        update_average(self.ema, self.generator, decay=self.ema_decay, skip=self.guard.found_inf)

    # ------------------------------------------------------------------------------------------- pictures to look at

    def stylize(self, x: Tensor) -> Tensor:
        """The averaged generator's picture, (B, 3, H, W) in [-1, 1]."""
        if not self.in_latent_space:
            return self.ema(x).clamp(-1, 1)
        source = self.encode_source(x) if self.source is None else self.source
        picture = self.teacher.latent.decode(self.ema(source))
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
        z = self.preview_latents(x) if self.preview is None else self.preview
        t = torch.full((len(x),), self.teacher.schedule.num_steps // 4, device=x.device)
        noise = Draws(self.seed, 0, range(len(x)), like=z).normal("preview", tuple(z.shape[1:]))
        m = self.relevance_map(Noised(z, z, noise, t, self.teacher.schedule), self.encode_prompts(captions))
        return F.interpolate(m / m.amax((1, 2, 3), keepdim=True).clamp(min=1e-12), x.shape[-2:], mode="bilinear")

    def preview_latents(self, x: Tensor) -> Tensor:
        """Latents of pictures (B, 3, H, W) at `PREVIEW_SIZE`, in sides that suit the U-Net."""
        size, multiple = x.shape[-2:], 8 * self.teacher.latent.downscale
        shrink = min(1.0, PREVIEW_SIZE / max(size))
        small = [max(1, round(side * shrink / multiple)) * multiple for side in size]
        return self.encode_source(F.interpolate(x, small, mode="bilinear", antialias=True))

    # -------------------------------------------------------------------------------------------------- checkpoints

    def saved_keys(self) -> set[str]:
        """Names in the state dict that belong to a checkpoint: everything but the frozen teacher."""
        trained = {id(parameter) for parameters, _ in self.parameter_groups().values() for parameter in parameters}
        kept = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        return kept | {name for name in self.state_dict() if not name.startswith("teacher.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keys = self.saved_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in keys}
        checkpoint["hyper_parameters"] = {**self.record, "smsff_version": __version__}
        checkpoint["bad_steps"] = self.guard.state_dict()
        checkpoint["warmup"] = self.warmup.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave a trained weight unset, or that has weights for something else."""
        self.guard.load_state_dict(checkpoint.get("bad_steps", {"in_a_row": 0, "total": 0}))
        self.warmup.load_state_dict(checkpoint.get("warmup", self.warmup.state_dict()))
        for optimizer in checkpoint.get("optimizer_states", []):
            for group in optimizer["param_groups"]:
                group["fused"] = True  # not so in checkpoints from before steps could be skipped
        state, own = checkpoint["state_dict"], self.state_dict()
        keys = self.saved_keys()
        missing, surplus = sorted(keys - state.keys()), sorted(state.keys() - keys)
        misfits = [k for k in sorted(keys & state.keys()) if state[k].shape != own[k].shape]
        for what, names in (("lacks", missing), ("has unknown", surplus), ("has another shape of", misfits)):
            if names:
                raise UserError(
                    f"ckpt_path: the checkpoint {what} {len(names)} of this run's {len(keys)} tensors (first: "
                    f"{names[0]}); it was written with another generator, objective or fake_score"
                )
