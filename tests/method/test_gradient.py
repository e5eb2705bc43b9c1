from __future__ import annotations

import torch
from closed_forms import draw

from smsff.method.gradient import Noised, gradient_weight, latent_surrogate
from smsff.method.schedule import NoiseSchedule

ELEMENTS = 4 * 5 * 7
T = torch.tensor([21, 400, 900])


def test_gradient_of_the_surrogate_is_g() -> None:
    z, g = draw(0).requires_grad_(), draw(1).requires_grad_()
    loss = latent_surrogate(z, g)
    torch.testing.assert_close(loss, 0.5 * ((z - (z - g)) ** 2).mean((1, 2, 3)))
    gradient, to_g = torch.autograd.grad(loss.sum(), (z, g), allow_unused=True)
    torch.testing.assert_close(gradient, g.detach() / ELEMENTS)
    assert to_g is None


def test_surrogate_keeps_tiny_gradients_in_float32() -> None:
    z, g = (100 * draw(0)).float().requires_grad_(), (1e-6 * draw(1)).float()
    (gradient,) = torch.autograd.grad(latent_surrogate(z, g).sum(), z)
    torch.testing.assert_close(gradient, g / ELEMENTS, rtol=1e-5, atol=0)


def test_result_and_source_get_the_same_noise(schedule: NoiseSchedule) -> None:
    at = Noised(draw(0), draw(1), draw(2), T, schedule)
    ab = schedule.alphas_cumprod[T].view(3, 1, 1, 1)
    torch.testing.assert_close(at.z_t, ab.sqrt() * draw(0) + (1 - ab).sqrt() * draw(2))
    torch.testing.assert_close(at.z_t - at.z_src_t, ab.sqrt() * (draw(0) - draw(1)))


def test_weights(schedule: NoiseSchedule) -> None:
    ab = schedule.alphas_cumprod[T]
    expected = {
        "uniform": torch.ones(3, dtype=torch.float64),
        "sigma2": 1 - ab,
        "sqrt_alpha_bar_sigma2": ab.sqrt() * (1 - ab),
        "posterior_variance": schedule.betas[T] * (1 - schedule.alphas_cumprod[T - 2]) / (1 - ab),
        "x0": ((1 - ab) / ab).sqrt(),
    }
    for kind, value in expected.items():
        weight = gradient_weight(kind, schedule, T)  # type: ignore[arg-type]
        assert weight.shape == (3, 1, 1, 1)
        torch.testing.assert_close(weight.flatten(), value)
