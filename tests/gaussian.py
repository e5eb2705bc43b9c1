"""A teacher in closed form: every quantity of the objective is known exactly, without a network.

If z ~ N(m, s^2) for each element, the best noise prediction at z_t = sqrt(ab) z + sqrt(1 - ab) noise is

    E[noise | z_t] = sqrt(1 - ab) (z_t - sqrt(ab) m) / (ab s^2 + 1 - ab).

With a style N(2, 1) and a generator whose output is N(m, 1) the difference of the two predictions is therefore
sqrt(ab (1 - ab)) (m - 2) at every z_t: it pulls towards the style and vanishes exactly there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from smsff.method.denoising import DenoisingWeight, denoising_loss, denoising_weight
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.teacher.condition import Condition


def gaussian_eps(z_t: Tensor, alpha_bar: Tensor, mean: float | Tensor, std: float | Tensor) -> Tensor:
    """E[noise | z_t] for z ~ N(mean, std^2); alpha_bar (B, 1, 1, 1), result in the shape and dtype of z_t."""
    eps = (1 - alpha_bar).sqrt() * (z_t - alpha_bar.sqrt() * mean) / (alpha_bar * std**2 + 1 - alpha_bar)
    return eps.to(z_t.dtype)


class IdentityLatent(nn.Module):
    """Latents that are the image itself."""

    downscale: int = 1
    channels: int = 3

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class GaussianScore(nn.Module):
    """The exact score of N(mean, std^2), element by element; prompts have no effect."""

    def __init__(self, schedule: NoiseSchedule, *, mean: float, std: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.mean = mean
        self.std = std

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return gaussian_eps(z_t, self.schedule.alpha_bar(t), self.mean, self.std)


class GaussianTeacher(nn.Module):
    """A `Teacher` whose base and style are Gaussians over RGB pixels (the latent is the image itself)."""

    def __init__(
        self,
        *,
        mean_base: float = 0.0,
        std_base: float = 1.0,
        mean_style: float = 2.0,
        std_style: float = 1.0,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule if schedule is not None else NoiseSchedule(scaled_linear_betas())
        self.latent = IdentityLatent()
        self.base = GaussianScore(self.schedule, mean=mean_base, std=std_base)
        self.style = GaussianScore(self.schedule, mean=mean_style, std=std_style)

    def encode_prompts(self, prompts: Sequence[str], *, style: bool = False) -> Condition:
        """Zeros (N, 1, 1) on the schedule's device: there is nothing to condition on."""
        return Condition(torch.zeros(len(prompts), 1, 1, device=self.schedule.betas.device))

    def drop_text_encoder(self) -> None:
        """There is none."""


class GaussianFakeScore(nn.Module):
    """A fake score with two parameters, mean and log standard deviation: exact for any Gaussian generator.

    Same interface as the LoRA fake score, so that the whole loop can be checked against its known fixed point.
    """

    def __init__(
        self, teacher: GaussianTeacher, *, mean: float = 0.0, std: float = 1.0, loss_weight: DenoisingWeight = "uniform"
    ) -> None:
        super().__init__()
        self.schedule = teacher.schedule
        self.loss_weight = loss_weight
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_std = nn.Parameter(torch.tensor(math.log(std)))

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return gaussian_eps(z_t, self.schedule.alpha_bar(t), self.mean, self.log_std.exp())

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Denoising loss of each sample, (B,); no gradient reaches z."""
        return self.loss_of(self(self.schedule.add_noise(z.detach(), noise, t), t, cond), noise, t)

    def loss_of(self, eps: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The same of a prediction that was made at noise and t."""
        return denoising_loss(eps, noise, denoising_weight(self.loss_weight, self.schedule.alpha_bar(t)))

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters()
