from __future__ import annotations

import pytest
import torch
from closed_forms import draw, gaussian
from tiny import given_scores

from smsff.method.gradient import Noised, gradient_weight
from smsff.method.schedule import NoiseSchedule, cfg
from smsff.method.sds import ScoreDistillation
from smsff.method.sms import StyleMatchingObjective, dmd_normalizer

T = torch.tensor([21, 400, 900])


@pytest.mark.parametrize("weight", ["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"])
def test_g_in_closed_form(weight: str, schedule: NoiseSchedule) -> None:
    """For a style N(m, 1) the prediction is sigma (z_t - sqrt(ab) m), so that with z_t written out
    g = w (sigma sqrt(ab) (z - m) - ab noise)."""
    objective = ScoreDistillation(weight=weight)  # type: ignore[arg-type]
    z, noise = draw(0), draw(1)
    g = objective.gradient(given_scores(style=gaussian(schedule, 2.0, 1.0)), Noised(z, draw(2), noise, T, schedule))
    ab = schedule.alphas_cumprod[T].view(3, 1, 1, 1)
    w = gradient_weight(weight, schedule, T)  # type: ignore[arg-type]
    torch.testing.assert_close(g, w * ((ab * (1 - ab)).sqrt() * (z - 2.0) - ab * noise))
    assert g.dtype == torch.float64
    assert not g.requires_grad


def test_with_the_weights_of_dmd_and_a_fake_that_knows_each_picture_it_is_dmd(schedule: NoiseSchedule) -> None:
    """The exact fake of a generator that makes the one picture z is N(z, 0), and its prediction is the noise."""
    z, noise = draw(0), draw(1)
    at = Noised(z, draw(2), noise, T, schedule)
    style = gaussian(schedule, 2.0, 0.7)
    scores = given_scores(style=style, fake=gaussian(schedule, z, 0.0))
    sds = ScoreDistillation(weight="x0", style_guidance=1.75).gradient(scores, at)
    x0_style = schedule.x0_from_eps(at.z_t, style(at.z_t, T, scale=1.75), T)
    objective = StyleMatchingObjective(weight="x0", normalize=True, style_guidance=1.75)
    dmd = objective.gradient(scores, at)
    torch.testing.assert_close(sds / dmd_normalizer(z, x0_style), dmd)
    assert dmd.abs().max() > 0.1


def test_its_mean_at_a_noised_latent_is_that_of_an_exact_fake(schedule: NoiseSchedule) -> None:
    """Over all (z, noise) behind one z_t, z ~ N(0.5, 1), SDS is on average the difference to the exact fake."""
    t, count = torch.tensor([300]), 200_000
    ab = schedule.alphas_cumprod[300]
    z_t = torch.tensor(0.8, dtype=torch.float64)
    posterior_mean = 0.5 + ab.sqrt() * (z_t - ab.sqrt() * 0.5)  # of z given z_t, with variance 1 - ab
    z = posterior_mean + (1 - ab).sqrt() * draw(0, (count, 1, 1, 1))
    noise = (z_t - ab.sqrt() * z) / (1 - ab).sqrt()
    at = Noised(z, z, noise, t.expand(count), schedule)
    style = gaussian(schedule, 2.0, 1.0)
    objective = ScoreDistillation(weight="uniform")
    g = objective.gradient(given_scores(style=style), at).mean()
    exact = style(z_t.view(1, 1, 1, 1), t, scale=1.0) - gaussian(schedule, 0.5, 1.0)(z_t.view(1, 1, 1, 1), t, scale=1.0)
    assert g.item() == pytest.approx(exact.item(), abs=5 / count**0.5)
    assert abs(exact.item()) > 0.5


def test_guidance_goes_to_the_style_score_alone(schedule: NoiseSchedule) -> None:
    """With the scale of the usual convention: 101 is cond + 100 (cond - uncond)."""
    cond, uncond, noise = draw(0), draw(1), draw(2)
    scores = given_scores(style=lambda z_t, t, *, scale: cfg(cond, uncond, scale))
    objective = ScoreDistillation(weight="uniform", style_guidance=101.0)
    g = objective.gradient(scores, Noised(draw(3), draw(4), noise, T, schedule))
    torch.testing.assert_close(g, cond + 100 * (cond - uncond) - noise)
