from __future__ import annotations

import pytest
import torch
from closed_forms import draw, gaussian
from tiny import given_scores
from torch import Tensor

from smsff.method.dds import DeltaDenoising
from smsff.method.gradient import Noised, Predict, gradient_weight
from smsff.method.schedule import NoiseSchedule, cfg

T = torch.tensor([50, 400, 900])


@pytest.mark.parametrize("reference", ["base", "style"])
@pytest.mark.parametrize("weight", ["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"])
def test_g_in_closed_form(weight: str, reference: str, schedule: NoiseSchedule) -> None:
    """Style N(2, 1) and reference N(0.5, 1): the noise cancels, g = w sigma sqrt(ab) ((z - 2) - (z_src - 0.5))."""
    asked = {"base": "base", "style": "style_source"}[reference]
    scores = given_scores(style=gaussian(schedule, 2.0, 1.0), **{asked: gaussian(schedule, 0.5, 1.0)})
    objective = DeltaDenoising(weight=weight, reference=reference)  # type: ignore[arg-type]
    z, z_src = draw(0), draw(1)
    g = objective.gradient(scores, Noised(z, z_src, draw(2), T, schedule))
    ab = schedule.alphas_cumprod[T].view(3, 1, 1, 1)
    w = gradient_weight(weight, schedule, T)  # type: ignore[arg-type]
    torch.testing.assert_close(g, w * (ab * (1 - ab)).sqrt() * (z - z_src - 1.5))
    assert not g.requires_grad


def test_a_flow_has_the_difference_of_the_latents_too(schedule: NoiseSchedule) -> None:
    """eps_style - eps_source = (1 - s) (v_style - v_source + z - z_src), with the velocities of Gaussians."""
    flow = NoiseSchedule(schedule.betas, "flow").double()
    at = Noised(draw(0), draw(1), draw(2), T, flow)
    s = flow.flow_time(T).view(3, 1, 1, 1)

    def velocity(z_s: Tensor, mean: float) -> Tensor:  # E[noise - z | z_s] for z ~ N(mean, 1), linear regression
        return -mean + (2 * s - 1) / (s**2 + (1 - s) ** 2) * (z_s - (1 - s) * mean)

    v_style, v_source = velocity(flow.network_input(at.z_t, T), 2.0), velocity(flow.network_input(at.z_src_t, T), 0.5)
    scores = given_scores(
        style=flow.eps_from_prediction(v_style, at.z_t, T), base=flow.eps_from_prediction(v_source, at.z_src_t, T)
    )
    g = DeltaDenoising().gradient(scores, at)
    torch.testing.assert_close(g, (1 - s) * (v_style - v_source + at.z - at.z_src))
    ab = flow.alpha_bar(T)
    torch.testing.assert_close(g, (ab * (1 - ab)).sqrt() * (at.z - at.z_src - 1.5))


def test_each_side_has_its_latent_and_its_guidance_scale(schedule: NoiseSchedule) -> None:
    at = Noised(draw(0), draw(1), draw(2), T, schedule)
    style, style_null, base, base_null = (draw(seed) for seed in range(3, 7))

    def on(latent: Tensor, cond: Tensor, uncond: Tensor) -> Predict:
        def predict(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
            assert torch.equal(z_t, latent)
            return cfg(cond, uncond, scale)

        return predict

    scores = given_scores(style=on(at.z_t, style, style_null), base=on(at.z_src_t, base, base_null))
    g = DeltaDenoising(style_guidance=7.5, source_guidance=3.0).gradient(scores, at)
    expected = style_null + 7.5 * (style - style_null) - base_null - 3.0 * (base - base_null)
    torch.testing.assert_close(g, expected)
