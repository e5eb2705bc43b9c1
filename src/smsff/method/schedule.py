"""The forward process of the diffusion model and the conversions between its predictions.

Notation: ``ab_t`` (alpha bar) is the product of ``1 - beta`` up to and including t, so that

    z_t = sqrt(ab_t) z + sqrt(1 - ab_t) noise,        v_t = sqrt(ab_t) noise - sqrt(1 - ab_t) z.

A flow-matching network (Liu et al. 2023) takes z_s = (1 - s) z + s noise with s in [0, 1] and predicts noise - z. Its
z_s is z_t / k with k = sqrt(ab_t) + sqrt(1 - ab_t), at s = sqrt(1 - ab_t) / k: the same signal-to-noise ratio, and
E[noise | z_t] does not depend on how z_t is scaled. So flow is one more prediction type on the same grid of t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smsff.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "flow"]

SMALLEST_ALPHA_BAR = 2.0**-24
"""Stands for 0, which schedules with zero terminal signal (Lin et al. 2024) end in: x0 stays finite there."""


def scaled_linear_betas(num_steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """The betas of Stable Diffusion 1.x: linear in sqrt(beta). float64, shape (num_steps,)."""
    return torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float64) ** 2


def cfg(eps_cond: Tensor, eps_uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, ``uncond + scale (cond - uncond)``: 1 is purely conditional, 0 unconditional."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


class NoiseSchedule(nn.Module):
    """Discrete variance-preserving schedule.

    Every ``t`` is a long tensor (B,) with values in [0, num_steps); every coefficient comes back as (B, 1, 1, 1), and
    tensors keep the dtype of the latent they belong to.

    Args:
        betas: (T,) one-step noise variances in (0, 1).
        prediction_type: what the network predicts, ``epsilon``, ``v_prediction`` or ``flow``.

    Raises:
        UserError: for any other prediction type, and for betas that are not a vector with values in (0, 1].
    """

    betas: Tensor
    alphas_cumprod: Tensor

    def __init__(self, betas: Tensor, prediction_type: str = "epsilon") -> None:
        super().__init__()
        if prediction_type not in get_args(PredictionType):
            raise UserError(
                f"teacher: prediction type {prediction_type!r} is not supported; "
                f"the base model must predict one of {', '.join(get_args(PredictionType))}"
            )
        betas = betas.detach().to("cpu", torch.float64)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError("teacher: the betas of a noise schedule must be one vector with values in (0, 1]")
        self.prediction_type = prediction_type
        self._exact = (betas, torch.cumprod(1.0 - betas, dim=0).clamp(min=SMALLEST_ALPHA_BAR))
        self.register_buffer("betas", self._exact[0].float(), persistent=False)
        self.register_buffer("alphas_cumprod", self._exact[1].float(), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> NoiseSchedule:
        """Keep the schedule out of ``.half()`` and ``.bfloat16()``, where 1 - ab_t would be noise at small t."""
        super()._apply(fn, recurse)
        for name, exact in zip(("betas", "alphas_cumprod"), self._exact, strict=True):
            buffer = getattr(self, name)
            if buffer.dtype != torch.float32:
                dtype = torch.float64 if buffer.dtype == torch.float64 else torch.float32
                setattr(self, name, exact.to(dtype).to(buffer.device))
        return self

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """ab_t, (B, 1, 1, 1)."""
        return self.alphas_cumprod[t].view(-1, 1, 1, 1)

    def shifted(self, k: float) -> NoiseSchedule:
        """The grid with noise over signal k times as large at every t: s becomes k s / (1 + (k - 1) s).

        Raises:
            UserError: k is not above 0.
        """
        if not k > 0:
            raise UserError(f"teacher.shift={k} must be above 0 (1: no shift)")
        ab = self._exact[1]
        ab = ab / (ab + k**2 * (1 - ab))
        return NoiseSchedule(1 - ab / torch.cat([ab.new_ones(1), ab[:-1]]), self.prediction_type)

    def flow_time(self, t: Tensor) -> Tensor:
        """s of a flow at the signal-to-noise ratio of t, (B,)."""
        ab = self.alpha_bar(t)
        return ((1 - ab).sqrt() / _flow_scale(ab)).flatten()

    def network_input(self, z_t: Tensor, t: Tensor) -> Tensor:
        """z_t as the network takes it: of a flow z_s = z_t / k."""
        return (z_t / _flow_scale(self.alpha_bar(t))).to(z_t.dtype) if self.prediction_type == "flow" else z_t

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(ab_t) z + sqrt(1 - ab_t) noise."""
        ab = self.alpha_bar(t)
        return (ab.sqrt() * z + (1 - ab).sqrt() * noise).to(z.dtype)

    def eps_from_prediction(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The network's output as a prediction of the noise.

        For v: eps = sqrt(ab_t) v + sqrt(1 - ab_t) z_t; for a flow eps = z_s + (1 - s) v.
        """
        if self.prediction_type == "epsilon":
            return prediction
        ab = self.alpha_bar(t)
        if self.prediction_type == "flow":
            return ((z_t + ab.sqrt() * prediction) / _flow_scale(ab)).to(prediction.dtype)
        return (ab.sqrt() * prediction + (1 - ab).sqrt() * z_t).to(prediction.dtype)

    def x0_from_eps(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a noise prediction implies, (z_t - sqrt(1 - ab_t) eps) / sqrt(ab_t)."""
        ab = self.alpha_bar(t)
        return ((z_t - (1 - ab).sqrt() * eps) / ab.sqrt()).to(z_t.dtype)

    def posterior_variance(self, t: Tensor, stride: int = 2) -> Tensor:
        """beta_t (1 - ab_{t - stride}) / (1 - ab_t), (B, 1, 1, 1).

        ``stride = 1`` is the variance of q(z_{t-1} | z_t, z). The authors' code (showlab/SMS) has ``stride = 2``: it
        walks a grid of 500 of the 1000 steps but keeps the beta of one step. Before step 0 lies the clean latent
        (ab = 1), where the variance is 0.
        """
        ab = self.alphas_cumprod
        previous = torch.where(t >= stride, ab[(t - stride).clamp(min=0)], torch.ones_like(ab[t]))
        return (self.betas[t] * (1 - previous) / (1 - ab[t])).view(-1, 1, 1, 1)


def _flow_scale(alpha_bar: Tensor) -> Tensor:
    """k, by which z_t is divided for a flow."""
    return alpha_bar.sqrt() + (1 - alpha_bar).sqrt()
