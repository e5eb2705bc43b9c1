from __future__ import annotations

import pytest
import torch
from gaussian import GaussianFakeScore, GaussianTeacher, gaussian_eps
from tiny import given_scores
from torch import Tensor

from smsff.method.gradient import Noised, latent_surrogate
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.method.sms import StyleMatchingObjective

SHAPE = (3, 3, 5, 7)
T = torch.tensor([50, 400, 900])


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half_schedule() -> NoiseSchedule:
    """One step with alpha bar 1/2, where the factor sqrt(ab (1 - ab)) is 1/2."""
    return NoiseSchedule(torch.tensor([0.5])).double()


@pytest.mark.parametrize(("mean", "expected"), [(0.0, -1.0), (1.0, -0.5), (2.0, 0.0)])
def test_style_minus_fake_at_alpha_bar_one_half(mean: float, expected: float) -> None:
    """Style N(2, 1), exact fake N(m, 1): the difference is sqrt(ab (1 - ab)) (m - 2) everywhere."""
    teacher = GaussianTeacher(mean_style=2.0, schedule=half_schedule()).double()
    fake = GaussianFakeScore(teacher, mean=mean).double()
    t = torch.zeros(3, dtype=torch.long)
    cond = teacher.encode_prompts(["a"] * 3)
    z_t = teacher.schedule.add_noise(mean + draw(0), draw(1), t)
    difference = teacher.style(z_t, t, cond) - fake(z_t, t, cond)
    torch.testing.assert_close(difference, torch.full_like(difference, expected))


def test_prediction_is_the_regression_of_the_noise() -> None:
    """With the right mean and std no affine correction of eps(z_t) predicts the noise better."""
    schedule = NoiseSchedule(scaled_linear_betas()).double()
    t = torch.tensor([300])
    noise = draw(1, (1, 1, 400, 500))
    z_t = schedule.add_noise(1.5 + 0.7 * draw(0, noise.shape), noise, t)
    eps = gaussian_eps(z_t, schedule.alpha_bar(t), 1.5, 0.7).flatten()
    residual = noise.flatten() - eps
    # Orthogonal to constants and to the prediction itself; both averages have a standard error near 2e-3.
    assert residual.mean().abs() < 0.01
    assert (residual * eps).mean().abs() < 0.01
    assert eps.var() > 0.3


def test_whole_loop_moves_the_output_to_the_style() -> None:
    """A generator that can only shift its input learns the shift from base N(0, 1) to style N(2, 1)."""
    teacher = GaussianTeacher(mean_style=2.0)
    fake = GaussianFakeScore(teacher)
    shift = torch.nn.Parameter(torch.zeros(()))
    objective = StyleMatchingObjective(weight="x0")
    optimizer = torch.optim.Adam([{"params": [shift], "lr": 0.02}, {"params": fake.parameters(), "lr": 0.1}])
    generator = torch.Generator().manual_seed(0)
    shape = (8, 3, 6, 8)
    cond = teacher.encode_prompts([""] * 8)
    for _ in range(400):
        z = torch.randn(shape, generator=generator) + shift
        t = torch.randint(20, 500, (8,), generator=generator)
        noise = torch.randn(shape, generator=generator)
        at = Noised(z.detach(), z.detach(), noise, t, teacher.schedule)
        g = objective.gradient(given_scores(style=teacher.style(at.z_t, t, cond), fake=fake(at.z_t, t, cond)), at)
        loss = latent_surrogate(z, g).mean() + fake.loss(z, noise, t, cond).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shift.item() == pytest.approx(2.0, abs=0.15)
    assert fake.mean.item() == pytest.approx(2.0, abs=0.15)
