from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import SHAPE, draw
from tiny import given_scores
from torch import Tensor

from smsff.method.gradient import Noised, gradient_weight, latent_surrogate
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.method.sms import StyleMatchingObjective

T = torch.tensor([21, 400, 900])
WEIGHTS = ["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"]


def gradient(
    schedule: NoiseSchedule, *, style: Tensor, fake: Tensor, z: Tensor | None = None, **options: Any
) -> Tensor:
    z = draw(2) if z is None else z
    objective = StyleMatchingObjective(**options)
    return objective.gradient(given_scores(style=style, fake=fake), Noised(z, draw(7), draw(3), T, schedule))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_g_in_closed_form(weight: str, schedule: NoiseSchedule) -> None:
    style, fake = draw(0), draw(1)
    g = gradient(schedule, style=style.requires_grad_(), fake=fake, weight=weight)
    assert g.dtype == torch.float64
    assert not g.requires_grad
    w = gradient_weight(weight, schedule, T)  # type: ignore[arg-type]
    for i in range(3):
        torch.testing.assert_close(g[i], w[i] * (style[i] - fake[i]).detach())


def test_x0_weight_is_the_difference_of_clean_latents(schedule: NoiseSchedule) -> None:
    style, fake = draw(0), draw(1)
    z_t = schedule.add_noise(draw(2), draw(3), T)
    g = gradient(schedule, style=style, fake=fake, weight="x0")
    torch.testing.assert_close(g, schedule.x0_from_eps(z_t, fake, T) - schedule.x0_from_eps(z_t, style, T))


def test_normaliser_divides_each_sample(schedule: NoiseSchedule) -> None:
    style, fake, z = draw(0), draw(1), draw(2)
    z_t = schedule.add_noise(z, draw(3), T)
    g = gradient(schedule, style=style, fake=fake, z=z, normalize=True)
    plain = gradient(schedule, style=style, fake=fake, z=z)
    x0_style = schedule.x0_from_eps(z_t, style, T)
    for i in range(3):
        torch.testing.assert_close(g[i], plain[i] / (z[i] - x0_style[i]).abs().mean())


def test_each_prediction_gets_its_guidance_scale(schedule: NoiseSchedule) -> None:
    def scaled(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
        return torch.full_like(z_t, scale)

    objective = StyleMatchingObjective(weight="uniform", style_guidance=7.0, fake_guidance=3.0)
    g = objective.gradient(given_scores(style=scaled, fake=scaled), Noised(draw(0), draw(1), draw(2), T, schedule))
    assert g.unique().tolist() == [4.0]


def test_runs_without_reading_values_back() -> None:
    schedule = NoiseSchedule(scaled_linear_betas()).to("meta")
    z = torch.empty(SHAPE, device="meta")
    t = torch.empty(3, dtype=torch.long, device="meta")
    for weight in WEIGHTS:
        objective = StyleMatchingObjective(weight=weight, normalize=True)  # type: ignore[arg-type]
        g = objective.gradient(given_scores(style=z, fake=z), Noised(z, z, z, t, schedule))
        assert latent_surrogate(z, g).shape == (3,)
