"""Training a style LoRA: one step of denoising.

styled picture --encoder--> z ----------------------------------> target: what separates z_t from z
   (degraded) --encoder--> z' --add noise(t)--> z_t --U-Net + LoRA--> prediction
L = mean of weight(t) |prediction - target|^2, plus the same on class pictures, so that the base's knowledge stays
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from smsff.errors import UserError
from smsff.method.draws import Draws
from smsff.randomness import keyed_randn
from smsff.style_lora.adapter import LoraOptions, TrainableStyle
from smsff.style_lora.objective import PowerTimesteps, StyleLoss, check_bands, denoising_target, weighted_error
from smsff.style_lora.prompts import TriggerPrompts
from smsff.teacher.condition import Condition
from smsff.teacher.sampling import img2img
from smsff.teacher.stable_diffusion import StableDiffusionTeacher
from smsff.training.module_state import read_state, write_state
from smsff.training.nonfinite import StepGuard, all_nan_unless_finite
from smsff.training.optimizer import GroupOptions, clip_and_guard, optimizer_and_schedule

MAX_PROMPTS = 3000
"""Most prompts that are embedded before the training, so that the text encoders can go."""


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The denoising loss on held-out pictures of the style, with the LoRA and without it, in bands of t.

    The ``draws`` timesteps of a band are evenly spread, each with its own noise, the same at every measurement.
    """

    bands: Sequence[int] = (0, 100, 200, 300, 500, 700, 1000)
    draws: int = 2
    batch: int = 8

    def times(self) -> Tensor:
        """Evenly spread timesteps of every band, (bands * draws,) long."""
        places = (torch.arange(self.draws) + 0.5) / self.draws
        return torch.cat([low + ((high - low) * places).long() for low, high in pairwise(self.bands)])

    def means(self, output: Any, z_t: Tensor, t: Tensor, cond: Condition, target: Tensor) -> Tensor:
        """Mean squared error of the network's own prediction in each band, (bands,)."""
        errors = []
        for rows in torch.arange(len(t)).split(self.batch):
            prediction = output(z_t[rows], t[rows], cond.expand(len(rows)))
            errors.append((prediction - target[rows]).square().mean((1, 2, 3)))
        return torch.cat(errors).view(len(self.bands) - 1, -1).mean(1).cpu()

    def by_band(self, losses: Sequence[float]) -> dict[str, float]:
        """Losses by the name of their band."""
        return {f"t {low}-{high}": loss for (low, high), loss in zip(pairwise(self.bands), losses, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The pictures of the grids: photos through img2img with the LoRA, from ``t0`` on (larger: more of the style)."""

    caption: str = "a photo"
    t0: int = 500
    steps: int = 20


class StyleLora(pl.LightningModule):
    """Trains a LoRA on the teacher's base to denoise pictures of one style.

    Args:
        teacher: A base without a style; gets the adapter `style`.
        unet_options, text_options: Optimizer settings of the two parts; the second is for `lora.text_rank` above 0.
        record: Plain containers stored in every checkpoint.
    """

    def __init__(
        self,
        *,
        teacher: StableDiffusionTeacher,
        lora: LoraOptions,
        prompts: TriggerPrompts,
        timesteps: PowerTimesteps,
        loss: StyleLoss,
        unet_options: GroupOptions,
        text_options: GroupOptions,
        steps: int,
        seed: int = 0,
        held_out: HeldOutLoss = HeldOutLoss(),
        samples: Samples = Samples(),
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        last = teacher.schedule.num_steps - 1
        if max(timesteps.t_max, samples.t0) > last:
            raise UserError(f"timesteps.t_max={timesteps.t_max}, samples.t0={samples.t0}: the base ends at t = {last}")
        check_bands(held_out.bands, last + 1)
        self.teacher = teacher
        self.style = TrainableStyle(teacher, lora)
        self.prompts, self.timesteps, self.loss = prompts, timesteps, loss
        self.unet_options, self.text_options = unet_options, text_options
        self.steps, self.seed, self.held_out, self.samples = steps, seed, held_out, samples
        self.record, self.guard = dict(record or {}), StepGuard()
        self.strict_loading = False  # the base is in no checkpoint; on_load_checkpoint does the checking
        self._base_losses: dict[int, Tensor] = {}
        self._losses: dict[int, Tensor] = {}

    # ----------------------------------------------------------------------------------------------------- the step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        x, schedule = batch["image"], self.teacher.schedule
        draws = Draws.of(batch, self.seed)

        z = self.encode(x, batch["margin"])  # what the style is
        z_in = self.encode_degraded(batch, z)
        z, z_in, degraded = self.with_class_pictures(batch, z, z_in)
        parts = len(z) // len(x)
        t = self.timesteps(self.drawn(draws.uniform, "t", parts))
        noise = self.drawn(lambda stream: draws.normal(stream, tuple(z.shape[1:])), "noise", parts)
        z_t = schedule.add_noise(z_in, noise, t)
        target = denoising_target(schedule, z, z_t, t)  # eps* or v*; the noise itself where z_in is z
        prediction = self.style.output(z_t, t, self.style.encode(self.draw_prompts(batch, draws)))
        weight = self.loss.weight(schedule, t, degraded)  # min-SNR
        losses = weighted_error(prediction, target, weight)
        loss = self.loss.total(losses, len(x))  # style, plus class pictures

        computed = {"latent": z_in[: len(x)], "prediction": prediction[: len(x)]}
        self.guard.see(batch, computed, {"t": t[: len(x)]})
        self.log_losses(loss, losses, degraded, len(x))
        return all_nan_unless_finite(loss)

    @torch.no_grad()
    def encode(self, x: Tensor, margin: int = 0) -> Tensor:
        """Scaled latents (B, C, h, w) of pictures (B, 3, H, W), without `margin` pixels on each side."""
        z, drop = self.teacher.latent.encode(x), margin // self.teacher.latent.downscale
        return z[..., drop : z.shape[-2] - drop, drop : z.shape[-1] - drop]

    def encode_degraded(self, batch: dict[str, Any], z: Tensor) -> Tensor:
        """z with the rows of degraded samples replaced by the latents of their inputs."""
        degraded = batch["degraded"]
        if not bool(degraded.any()):
            return z
        inputs = self.encode(batch["input"][degraded], batch["margin"]).to(z)
        return z.index_put((degraded,), inputs)

    def with_class_pictures(self, batch: dict[str, Any], z: Tensor, z_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, z_in and `degraded`, followed by the rows of the class pictures, if there are any."""
        degraded = batch["degraded"]
        if "prior_image" not in batch:
            return z, z_in, degraded
        prior = self.encode(batch["prior_image"], batch["margin"])
        return torch.cat([z, prior]), torch.cat([z_in, prior]), torch.cat([degraded, torch.zeros_like(degraded)])

    @staticmethod
    def drawn(draw: Callable[[str], Tensor], stream: str, parts: int) -> Tensor:
        """Draws for the samples, and with two parts then for the class pictures."""
        return torch.cat([draw(name) for name in (stream, f"prior {stream}")[:parts]])

    def draw_prompts(self, batch: dict[str, Any], draws: Draws) -> list[str]:
        """Prompts of the samples and of the class pictures; these have no trigger and are never left out."""
        drops = draws.uniform("prompt").tolist()
        prompts = [self.prompts.draw(caption, u) for caption, u in zip(batch["caption"], drops, strict=True)]
        return [*prompts, *batch.get("prior_caption", [])]

    def log_losses(self, loss: Tensor, losses: Tensor, degraded: Tensor, count: int) -> None:
        """The loss and its parts: ordinary, degraded and class pictures, each the mean over the samples it has."""
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        own, degraded = losses[:count], degraded[:count]
        parts = {"style": own[~degraded], "degraded": own[degraded], "prior": losses[count:]}
        for name, part in parts.items():
            if len(part):
                self.log(f"train/{name}", part.detach().mean(), batch_size=len(part))

    # ------------------------------------------------------------------------------------------------------- prompts

    def prepare_prompts(self, captions: Iterable[str], prior_captions: Iterable[str] = ()) -> None:
        """Embed every prompt of the run and free the text encoders, unless these are trained or prompts too many."""
        possible = self.prompts.possible([*captions, self.samples.caption])
        prompts = list(dict.fromkeys([*possible, *prior_captions]))
        if len(prompts) <= MAX_PROMPTS and not self.style.text_parameters:
            self.style.encode(prompts)
            self.teacher.drop_text_encoder()

    # --------------------------------------------------------------------------------------------------- measurement

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The losses of a held-out picture, or a photo and what img2img makes of it."""
        x = batch["image"]
        if "held_out" in batch:
            self.measure(batch["held_out"], x, batch["caption"][0], batch["margin"])
            return {"source": x[:0], "result": x[:0]}
        cond = self.style.encode([self.prompts.fill(self.samples.caption)] * len(x))
        options = {"t0": self.samples.t0, "steps": self.samples.steps, "seed": self.seed}
        result = img2img(self.teacher.style, self.teacher.schedule, self.teacher.latent, x, cond, **options)
        return {"source": x, "result": result, "name": batch["name"]}

    @torch.no_grad()
    def measure(self, number: int, x: Tensor, caption: str, margin: int = 0) -> None:
        """Keep the loss of one held-out picture (1, 3, H, W) in every band, with the LoRA and without."""
        t = self.held_out.times().to(x.device)
        z = self.encode(x, margin).expand(len(t), -1, -1, -1)
        noise = keyed_randn(self.seed, "held out", number, range(len(t)), tuple(z.shape[1:])).to(z)
        z_t = self.teacher.schedule.add_noise(z, noise, t)
        target = denoising_target(self.teacher.schedule, z, z_t, t)
        cond = self.style.encode([self.prompts.fill(caption)])
        self._losses[number] = self.held_out.means(self.style.output, z_t, t, cond, target)
        if number not in self._base_losses:
            plain = self.teacher.encode_prompts([self.prompts.fill(caption)])
            self._base_losses[number] = self.held_out.means(self.style.base_output, z_t, t, plain, target)

    def on_validation_epoch_start(self) -> None:
        self._losses = {}

    def on_validation_epoch_end(self) -> None:
        """Print and log the mean held-out losses."""
        if not self._losses:
            return
        ours, base = map(self.held_out.by_band, self.held_out_losses())
        self.log_dict({f"held_out/lora {name}": loss for name, loss in ours.items()})
        self.log_dict({f"held_out/base {name}": loss for name, loss in base.items()})
        parts = ", ".join(f"{name} {loss:.4f} / {base[name]:.4f}" for name, loss in ours.items())
        learned = sum(loss < base[name] for name, loss in ours.items())
        text = f"held-out loss, LoRA / base: {parts} (better in {learned} of {len(ours)} bands)"
        if self.trainer.is_global_zero:
            print(text, flush=True)

    def held_out_losses(self) -> tuple[list[float], list[float]]:
        """Mean losses by band of the last validation: with the LoRA, and without it on the same pictures."""
        kinds = (self._losses, self._base_losses)
        ours, base = (torch.stack([one[n] for n in sorted(self._losses)]).mean(0).tolist() for one in kinds)
        return ours, base

    # -------------------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One AdamW, a group for the U-Net's LoRA and one for that of the text encoders, if it has any."""
        groups = {"unet": (list(self.style.unet_parameters.values()), self.unet_options)}
        if self.style.text_parameters:
            groups["text"] = (list(self.style.text_parameters.values()), self.text_options)
        return optimizer_and_schedule(groups, self.steps)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip each group by its own norm; a step whose gradients are not finite is skipped."""
        clip_and_guard(self, self.guard, optimizer)

    # -------------------------------------------------------------------------------------------------- checkpoints

    def saved_keys(self) -> set[str]:
        """Names in the state dict that belong to a checkpoint: the LoRA alone."""
        trained = {id(p) for p in (*self.style.unet_parameters.values(), *self.style.text_parameters.values())}
        return {name for name, parameter in self.named_parameters() if id(parameter) in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        write_state(checkpoint, self.saved_keys(), {**self.record, "task": "style_lora"}, self.guard)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task or of a LoRA of another size."""
        others = "another task or other lora options"
        read_state(checkpoint, self.saved_keys(), self.state_dict(), self.guard, written_with=others)
