"""Posterior distillation sampling (Koo et al. 2024).

The stochastic latent of a clean latent z between the steps t and t' = t - stride, each with a noise of its own,

    zeta = (z_t' - mu(z_t, eps)) / s,    mu = c0 x0(z_t, eps) + c1 z_t,    s^2 = beta_t (1 - ab_t') / (1 - ab_t),
    c0 = sqrt(ab_t') beta_t / (1 - ab_t),    c1 = sqrt(1 - beta_t) (1 - ab_t') / (1 - ab_t),

is matched to that of the source: g = zeta - zeta_src. The second noise cancels, and what is left is

    g = psi(t) (z - z_src) + chi(t) (eps_style(z_t) - eps_source(z_src_t)).

The first part holds on to the source. c0 and c1 are those of a single step, for which z_t' and mu have the same share
of z, so with stride 1 it vanishes and g is a weighted DDS. It is there because the authors' code steps over a grid of
every second t (stride 2) with the beta of one step. With ab_t = (1 - beta_t) ab_t' q, q the product of 1 - beta over
the steps skipped,

    psi s = (1 - beta_t) sqrt(ab_t') (1 - sqrt(q)) (1 + ab_t' sqrt(q)) / (1 - ab_t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from smsff.method.dds import Reference, edit_direction
from smsff.method.gradient import Noised, Scores
from smsff.method.schedule import NoiseSchedule


def posterior_weights(schedule: NoiseSchedule, t: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """psi(t) and chi(t), (B, 1, 1, 1) each, for t long (B,), t >= stride >= 1."""
    beta, alpha_bar, before = (
        x.view(-1, 1, 1, 1)
        for x in (schedule.betas[t], schedule.alphas_cumprod[t], schedule.alphas_cumprod[t - stride])
    )
    std = (beta * (1 - before) / (1 - alpha_bar)).sqrt()
    log_q = torch.zeros_like(beta)
    for k in range(1, stride):
        log_q = log_q + torch.log1p(-schedule.betas[t - k]).view(-1, 1, 1, 1)
    root_q = (log_q / 2).exp()
    # 1 - sqrt(q) by expm1: q is close to 1, and with stride 1 exactly 1.
    kept = (1 - beta) * before.sqrt() * -torch.expm1(log_q / 2) * (1 + before * root_q) / (1 - alpha_bar)
    c0 = before.sqrt() * beta / (1 - alpha_bar)
    return kept / std, c0 * ((1 - alpha_bar) / alpha_bar).sqrt() / std


@dataclass(frozen=True, kw_only=True)
class PosteriorDistillation:
    """
    Attributes:
        style_guidance, source_guidance: Guidance scales of the two predictions; the source has one for both.
        stride: t - t', at most the smallest t that is drawn. The authors' code has 2, and odd t from 21 to 979; with 1
            nothing of g holds on to the source.
        reference: Which model sees the source, as in `DeltaDenoising`.
    """

    needs_fake: ClassVar[bool] = False

    style_guidance: float = 100.0
    source_guidance: float = 100.0
    stride: int = 2
    reference: Reference = "base"

    @torch.no_grad()
    def gradient(self, scores: Scores, at: Noised) -> Tensor:
        """g, (B, C, h, w)."""
        difference = edit_direction(
            scores,
            at,
            reference=self.reference,
            style_scale=self.style_guidance,
            source_scale=self.source_guidance,
        )
        psi, chi = posterior_weights(at.schedule, at.t, self.stride)
        return (psi * (at.z - at.z_src) + chi * difference).to(difference.dtype)
