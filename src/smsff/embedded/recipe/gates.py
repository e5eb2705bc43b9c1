"""Is a teacher good enough to distil? Figures on the validation photos, whose true stylization is known.

G1, the base alone, for every kind of style: does its prompt point from the photo to the style, from half-way too, and
does the relevance map lie on what the style changes? And how well does it denoise photos?
G2, a LoRA: the same step with it; at the style itself the step should be small.
G3, img2img with the LoRA against doing nothing.

A step is x0 of the style's score minus x0 of the base under "a photo", the mean of a few draws of noise. Its *cosine*
is that with the true change of the latents, its *share* its length as a share of that. All PSNR are tone-free, in dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from smsff.data.crops import middle
from smsff.data.folder import load_photos
from smsff.embedded import teacher as embedded
from smsff.embedded.known_styles import STYLES
from smsff.metrics.known_style import psnr, ssim, tone_free
from smsff.randomness import keyed_randn
from smsff.teacher.sampling import img2img
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

SIDE = 192
DRAWS = 2
STEP_T = (40, 150, 300)
RELEVANCE_T = (20, 100, 200, 300)
LOSS_T = (20, 100, 300)
T0 = (100, 200, 300, 400)

Figures = dict[str, float]


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean over the batch."""
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def length_share(a: Tensor, b: Tensor) -> float:
    """|a| / |b|, mean over the batch."""
    return (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).mean().item()


def gain(y: Tensor, truth: Tensor) -> float:
    return psnr(tone_free(y, truth), truth).mean().item()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over the pixels of each picture, mean over the batch."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return cosine(a, b)


@dataclass(frozen=True)
class Probe:
    """A teacher and the photos that it is asked about, (B, 3, H, W) in [0, 1]."""

    teacher: StableDiffusionTeacher
    photos: Tensor

    def encode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher.latent.encode(2 * x - 1)

    def decode(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return ((self.teacher.latent.decode(z) + 1) / 2).clamp(0, 1)

    def predict(self, z_t: Tensor, t: Tensor, prompt: str, *, lora: bool = False) -> Tensor:
        score = self.teacher.style if lora else self.teacher.base
        return score(z_t, t, self.teacher.encode_prompts([prompt]).expand(len(z_t)))

    def draws(self, z: Tensor, t: int) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """z with noise, t, and the noise, a few times."""
        times = torch.full((len(z),), t)
        noises = [keyed_randn(0, "gate", i, range(len(z)), tuple(z.shape[1:])) for i in range(DRAWS)]
        return [(self.teacher.schedule.add_noise(z, noise, times), times, noise) for noise in noises]

    def step(self, z: Tensor, t: int, prompt: str, *, lora: bool = False) -> Tensor:
        """x0 under the prompt minus x0 of the base under "a photo"."""
        x0, total = self.teacher.schedule.x0_from_eps, torch.zeros_like(z)
        for z_t, times, _ in self.draws(z, t):
            styled, plain = self.predict(z_t, times, prompt, lora=lora), self.predict(z_t, times, "a photo")
            total += (x0(z_t, styled, times) - x0(z_t, plain, times)) / DRAWS
        return total

    def relevance(self, z: Tensor, t: int, prompt: str) -> Tensor:
        """|eps under the edit prompt - eps under the empty one|, mean over channels and draws: (B, h, w)."""
        maps = [self.predict(z_t, s, prompt) - self.predict(z_t, s, "") for z_t, s, _ in self.draws(z, t)]
        return torch.stack([one.abs().mean(1) for one in maps]).mean(0)

    def photo_losses(self) -> Figures:
        """Squared error of x0 on the photos, by t."""
        losses = {}
        for t in LOSS_T:
            z = self.encode(self.photos)
            found = [
                self.teacher.schedule.x0_from_eps(z_t, self.predict(z_t, s, "a photo"), s)
                for z_t, s, _ in self.draws(z, t)
            ]
            losses[f"t {t}"] = (torch.stack(found) - z).square().mean().item()
        return losses

    def way(self, style: str, *, lora: bool = False) -> dict[str, Figures]:
        """Figures of the step from the photo, from half-way and, with a LoRA, at the style, by place and t."""
        truth, prompt = STYLES[style](self.photos), embedded.PROMPTS[style][0]
        z_truth, z_photo = self.encode(truth), self.encode(self.photos)
        figures: dict[str, Figures] = {}
        for place, x in {"photo": self.photos, "half": (self.photos + truth) / 2}.items():
            z = self.encode(x)
            before = gain(self.decode(z), truth)
            for t in STEP_T:
                step = self.step(z, t, prompt, lora=lora)
                figures[f"{place} t {t}"] = {
                    "cosine": cosine(step, z_truth - z),
                    "share": length_share(step, z_truth - z),
                    "before": before,
                    "after": gain(self.decode(z + step), truth),
                }
        if lora:
            for t in STEP_T:
                step = self.step(z_truth, t, prompt, lora=True)
                figures[f"style t {t}"] = {"share": length_share(step, z_truth - z_photo)}
        return figures

    def relevance_correlation(self, style: str) -> Figures:
        """Of the relevance map at the photo with the true change of the latents, by t."""
        z = self.encode(self.photos)
        change = (self.encode(STYLES[style](self.photos)) - z).abs().mean(1)
        edit = embedded.PROMPTS[style][1]
        return {f"t {t}": correlation(self.relevance(z, t, edit), change) for t in RELEVANCE_T}

    def img2img(self, style: str, t0: int) -> Tensor:
        """The photos by SDEdit with the LoRA, in [0, 1]."""
        teacher = self.teacher
        cond = teacher.encode_prompts([embedded.PROMPTS[style][0]]).expand(len(self.photos))
        y = img2img(teacher.style, teacher.schedule, teacher.latent, 2 * self.photos - 1, cond, t0=t0, steps=10)
        return (y + 1) / 2

    def sampled(self, style: str) -> tuple[dict[str, Figures], Tensor]:
        """PSNR and SSIM of img2img by t0 and of doing nothing; and the pictures of the best t0."""
        truth = STYLES[style](self.photos)
        results = {"nothing": self.photos, **{f"t0 {t0}": self.img2img(style, t0) for t0 in T0}}
        figures = {
            name: {"psnr": gain(y, truth), "ssim": ssim(tone_free(y, truth), truth).mean().item()}
            for name, y in results.items()
        }
        best = max(list(results)[1:], key=lambda name: figures[name]["psnr"])
        return figures, results[best]


def rounded(figures: object) -> object:
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def base_gate(teacher: StableDiffusionTeacher, photos: Tensor, kinds: Sequence[str]) -> dict[str, object]:
    """G1."""
    probe = Probe(teacher, photos)
    kind_figures = {kind: {"relevance": probe.relevance_correlation(kind), "step": probe.way(kind)} for kind in kinds}
    return {"photo_losses": probe.photo_losses(), **kind_figures}


def style_gates(teacher: StableDiffusionTeacher, photos: Tensor, style: str, picture: Path) -> dict[str, object]:
    """G2 and G3, and a picture: photo, step by the prompt alone, step with the LoRA, img2img, truth."""
    probe = Probe(teacher, photos)
    sampled, best = probe.sampled(style)
    z, prompt = probe.encode(photos), embedded.PROMPTS[style][0]
    steps = [probe.decode(z + probe.step(z, 100, prompt, lora=lora)) for lora in (False, True)]
    columns = [photos, *steps, best, STYLES[style](photos)]
    picture.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.stack(columns, 1).flatten(0, 1), picture, nrow=len(columns))
    return {"step": probe.way(style, lora=True), "img2img": sampled}


def validation_photos() -> Tensor:
    return torch.cat([middle(x, SIDE) for x in load_photos("val").values()])


def measure(folder: Path, styles: Sequence[str], pictures: Path, kinds: Sequence[str]) -> dict[str, object]:
    """All gates of a teacher in `folder` with ``loras/<style>.safetensors`` for each style."""
    photos = validation_photos()
    load: Callable[..., StableDiffusionTeacher] = load_stable_diffusion
    figures: dict[str, object] = {"base": base_gate(load(base=str(folder)), photos, kinds)}
    for style in styles:
        teacher = load(base=str(folder), lora=str(folder / "loras" / f"{style}.safetensors"))
        figures[style] = style_gates(teacher, photos, style, pictures / f"{style}.png")
    result = rounded(figures)
    assert isinstance(result, dict)
    return result
