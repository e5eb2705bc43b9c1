from __future__ import annotations

import pytest
import torch
from closed_forms import SHAPE, draw, gaussian
from tiny import given_scores

from smsff.errors import UserError
from smsff.method.gradient import Noised, gradient_weight
from smsff.method.schedule import NoiseSchedule, cfg
from smsff.method.sms import StyleMatchingObjective
from smsff.method.vsd import VariationalDistillation

T = torch.tensor([21, 400, 900])


@pytest.mark.parametrize("weight", ["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"])
def test_g_in_closed_form(weight: str, schedule: NoiseSchedule) -> None:
    """Style N(2, 1) and exact fake N(0.5, 1): g = w sigma sqrt(ab) (0.5 - 2), whatever z and the noise are."""
    scores = given_scores(style=gaussian(schedule, 2.0, 1.0), fake=gaussian(schedule, 0.5, 1.0))
    objective = VariationalDistillation(lambda_freq=0.0, weight=weight)  # type: ignore[arg-type]
    g = objective.gradient(scores, Noised(draw(0), draw(1), draw(2), T, schedule))
    ab = schedule.alphas_cumprod[T].view(3, 1, 1, 1)
    w = gradient_weight(weight, schedule, T)  # type: ignore[arg-type]
    torch.testing.assert_close(g, (w * (ab * (1 - ab)).sqrt() * -1.5).expand(SHAPE))
    assert not g.requires_grad


def test_zero_where_the_generator_has_the_distribution_of_the_style(schedule: NoiseSchedule) -> None:
    scores = given_scores(style=gaussian(schedule, 0.5, 0.8), fake=gaussian(schedule, 0.5, 0.8))
    g = VariationalDistillation(lambda_freq=0.0).gradient(scores, Noised(draw(0), draw(1), draw(2), T, schedule))
    assert not g.any()


def test_guidance_goes_to_the_style_score_alone(schedule: NoiseSchedule) -> None:
    cond, uncond, fake, fake_null = (draw(seed) for seed in range(4))
    scores = given_scores(
        style=lambda z_t, t, *, scale: cfg(cond, uncond, scale),
        fake=lambda z_t, t, *, scale: cfg(fake, fake_null, scale),
    )
    at = Noised(draw(4), draw(5), draw(6), T, schedule)
    g = VariationalDistillation(lambda_freq=0.0, weight="uniform").gradient(scores, at)
    torch.testing.assert_close(g, uncond + 7.5 * (cond - uncond) - fake)
    both = VariationalDistillation(lambda_freq=0.0, weight="uniform", fake_guidance=4.5).gradient(scores, at)
    torch.testing.assert_close(g - both, 3.5 * (fake - fake_null))


def test_the_formula_is_that_of_style_matching(schedule: NoiseSchedule) -> None:
    scores, at = given_scores(style=draw(0), fake=draw(1)), Noised(draw(2), draw(3), draw(4), T, schedule)
    sms = StyleMatchingObjective(lambda_freq=0.0, weight="sigma2")
    assert torch.equal(VariationalDistillation(lambda_freq=0.0).gradient(scores, at), sms.gradient(scores, at))


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"objective\.weight='snr'"):
        VariationalDistillation(lambda_freq=1.0, weight="snr")  # type: ignore[arg-type]
    for name in ("lambda_freq", "style_guidance", "fake_guidance"):
        with pytest.raises(UserError, match=rf"objective\.{name}=-1"):
            VariationalDistillation(**{"lambda_freq": 1.0, name: -1.0})  # type: ignore[arg-type]
