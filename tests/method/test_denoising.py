from __future__ import annotations

import pytest
import torch

from smsff.method.denoising import denoising_loss, denoising_weight
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas

SHAPE = (3, 4, 5, 7)
ALPHA_BAR = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).view(-1, 1, 1, 1)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "power"), [("uniform", 0), ("alpha_bar_squared", 2)])
def test_value_and_gradient(kind: str, power: int) -> None:
    prediction, noise = draw(0).requires_grad_(), draw(1)
    weight = denoising_weight(kind, ALPHA_BAR)  # type: ignore[arg-type]
    torch.testing.assert_close(weight, ALPHA_BAR**power)
    loss = denoising_loss(prediction, noise, weight)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float64
    for i in range(3):
        expected = ALPHA_BAR[i].item() ** power * torch.nn.functional.mse_loss(prediction[i], noise[i])
        torch.testing.assert_close(loss[i], expected)
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    torch.testing.assert_close(gradient, 2 * weight * (prediction - noise).detach() / prediction[0].numel())


def test_velocity_is_the_squared_error_of_a_flows_own_prediction() -> None:
    schedule, t = NoiseSchedule(scaled_linear_betas(), "flow").double(), torch.tensor([21, 499, 980])
    z, noise, v = draw(0), draw(1), draw(2)
    eps = schedule.eps_from_prediction(v, schedule.add_noise(z, noise, t), t)
    loss = denoising_loss(eps, noise, denoising_weight("velocity", schedule.alpha_bar(t)))
    torch.testing.assert_close(loss, (v - (noise - z)).square().mean((1, 2, 3)))
