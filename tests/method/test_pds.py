from __future__ import annotations

import pytest
import torch
from closed_forms import SHAPE, draw, gaussian
from tiny import given_scores
from torch import Tensor

from smsff.method.dds import DeltaDenoising
from smsff.method.gradient import Noised
from smsff.method.pds import PosteriorDistillation, posterior_weights
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas

T = torch.tensor([21, 401, 979])


def stochastic_latent(
    schedule: NoiseSchedule, z: Tensor, eps: Tensor, noise: Tensor, second: Tensor, stride: int
) -> Tensor:
    """(z_t' - mu) / s as it is written, with both noises."""
    beta = schedule.betas[T].view(3, 1, 1, 1)
    ab, before = schedule.alpha_bar(T), schedule.alpha_bar(T - stride)
    z_t, z_before = schedule.add_noise(z, noise, T), schedule.add_noise(z, second, T - stride)
    x0 = (z_t - (1 - ab).sqrt() * eps) / ab.sqrt()
    mu = before.sqrt() * beta / (1 - ab) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - ab) * z_t
    return (z_before - mu) / (beta * (1 - before) / (1 - ab)).sqrt()


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("reference", ["base", "style"])
def test_g_is_the_difference_of_the_stochastic_latents(stride: int, reference: str, schedule: NoiseSchedule) -> None:
    z, z_src, noise, second = (draw(seed) for seed in range(4))
    at = Noised(z, z_src, noise, T, schedule)
    style, source = gaussian(schedule, 2.0, 0.7), gaussian(schedule, 0.5, 1.3)
    asked = {"base": "base", "style": "style_source"}[reference]
    scores = given_scores(style=style, **{asked: source})
    objective = PosteriorDistillation(stride=stride, reference=reference)  # type: ignore[arg-type]
    g = objective.gradient(scores, at)
    zeta = stochastic_latent(schedule, z, style(at.z_t, T, scale=1.0), noise, second, stride)
    zeta_src = stochastic_latent(schedule, z_src, source(at.z_src_t, T, scale=1.0), noise, second, stride)
    torch.testing.assert_close(g, zeta - zeta_src, rtol=1e-9, atol=1e-9)
    assert not g.requires_grad


def test_weights_of_the_authors_grid(schedule: NoiseSchedule) -> None:
    t = torch.tensor([21, 51, 101, 201, 301, 401, 499, 601, 801, 979])
    psi, chi = (weight.flatten().tolist() for weight in posterior_weights(schedule, t, 2))
    assert psi == pytest.approx([1.613, 0.651, 0.314, 0.140, 0.079, 0.049, 0.032, 0.021, 0.010, 0.004], abs=5e-4)
    assert chi == pytest.approx([0.232, 0.153, 0.115, 0.092, 0.084, 0.081, 0.082, 0.085, 0.096, 0.110], abs=5e-4)


def test_the_hold_on_the_source_vanishes_between_neighbouring_steps() -> None:
    """Exactly, in float32 too; the rest is DDS with the weight chi."""
    schedule = NoiseSchedule(scaled_linear_betas())
    t = torch.arange(1, 1000)
    psi, chi = posterior_weights(schedule, t, 1)
    assert not psi.any()
    assert (chi[t > 1] > 0).all()
    at = Noised(draw(0).float(), draw(1).float(), draw(2).float(), T, schedule)
    scores = given_scores(style=draw(3).float(), base=draw(4).float())
    pds = PosteriorDistillation(stride=1).gradient(scores, at)
    dds = DeltaDenoising().gradient(scores, at)
    torch.testing.assert_close(pds, posterior_weights(schedule, T, 1)[1] * dds)


def test_float32_weights_are_precise_at_every_t() -> None:
    t = torch.arange(2, 1000)
    for exact, rounded in zip(
        posterior_weights(NoiseSchedule(scaled_linear_betas()).double(), t, 2),
        posterior_weights(NoiseSchedule(scaled_linear_betas()), t, 2),
        strict=True,
    ):
        assert (rounded / exact - 1).abs().max() < 1e-3
        assert (rounded / exact - 1).abs()[t >= 21].max() < 2e-5


def test_runs_without_reading_values_back() -> None:
    schedule = NoiseSchedule(scaled_linear_betas()).to("meta")
    z, t = torch.empty(SHAPE, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    g = PosteriorDistillation().gradient(given_scores(style=z, base=z), Noised(z, z, z, t, schedule))
    assert g.shape == SHAPE
