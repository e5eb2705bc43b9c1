from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.objective.sms import StyleMatchingObjective, dmd_normalizer, gradient_weight, latent_surrogate
from smsff.teacher.schedule import NoiseSchedule, scaled_linear_betas

SHAPE = (3, 4, 5, 7)
ELEMENTS = 4 * 5 * 7
T = torch.tensor([21, 400, 900])
WEIGHTS = ["uniform", "sigma2", "sqrt_alpha_bar_sigma2", "posterior_variance", "x0"]


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(scaled_linear_betas()).double()


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relevance() -> Tensor:
    return draw(9, (3, 1, 5, 7)).abs()


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


@pytest.mark.parametrize("weight", WEIGHTS)
def test_g_in_closed_form(weight: str, schedule: NoiseSchedule) -> None:
    objective = StyleMatchingObjective(lambda_freq=1.0, weight=weight)  # type: ignore[arg-type]
    style, fake, m = draw(0), draw(1), relevance()
    g = objective.gradient(style.requires_grad_(), fake, t=T, schedule=schedule, relevance=m)
    assert g.dtype == torch.float64
    assert not g.requires_grad
    w = gradient_weight(weight, schedule, T)  # type: ignore[arg-type]
    for i in range(3):
        torch.testing.assert_close(g[i], m[i] * w[i] * (style[i] - fake[i]).detach())


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


def test_zero_where_fake_equals_style(schedule: NoiseSchedule) -> None:
    objective = StyleMatchingObjective(lambda_freq=1.0)
    g = objective.gradient(draw(0), draw(0), t=T, schedule=schedule, relevance=relevance())
    assert not g.any()


def test_x0_weight_is_the_difference_of_clean_latents(schedule: NoiseSchedule) -> None:
    style, fake, z_t = draw(0), draw(1), draw(2)
    objective = StyleMatchingObjective(lambda_freq=0.0, weight="x0")
    g = objective.gradient(style, fake, t=T, schedule=schedule, relevance=torch.ones_like(relevance()))
    torch.testing.assert_close(g, schedule.x0_from_eps(z_t, fake, T) - schedule.x0_from_eps(z_t, style, T))


def test_normaliser_of_each_sample(schedule: NoiseSchedule) -> None:
    """(mu_fake - mu_style) / mean |z - mu_style|: DMD's gradient, from clean latents alone."""
    style, fake, z = draw(0), draw(1), draw(2)
    z_t = schedule.add_noise(z, draw(3), T)
    objective = StyleMatchingObjective(lambda_freq=0.0, weight="x0", normalize=True)
    m = relevance()
    g = objective.gradient(style, fake, t=T, schedule=schedule, relevance=m, z=z, z_t=z_t)
    mu_fake, mu_style = (schedule.x0_from_eps(z_t, eps, T) for eps in (fake, style))
    for i in range(3):
        expected = m[i] * (mu_fake[i] - mu_style[i]) / (z[i] - mu_style[i]).abs().mean()
        torch.testing.assert_close(g[i], expected)


def test_normaliser_survives_a_perfect_prediction() -> None:
    torch.testing.assert_close(dmd_normalizer(draw(0), draw(0)).flatten(), torch.full((3,), 1e-6).double())


def test_normaliser_needs_the_latents(schedule: NoiseSchedule) -> None:
    objective = StyleMatchingObjective(lambda_freq=0.0, normalize=True)
    with pytest.raises(ValueError, match="z and z_t"):
        objective.gradient(draw(0), draw(1), t=T, schedule=schedule, relevance=relevance())


def test_loss_is_the_written_sum() -> None:
    objective = StyleMatchingObjective(lambda_freq=0.25)
    z, g, spectrum = draw(0), draw(1), torch.tensor([1.0, 2.0, 3.0]).double()
    torch.testing.assert_close(objective.loss(z, g, spectrum), latent_surrogate(z, g) + 0.25 * spectrum)


def test_duplicating_the_batch_changes_no_sample(schedule: NoiseSchedule) -> None:
    """A weight shared by all samples gets the same gradient from a batch and from that batch twice."""
    objective = StyleMatchingObjective(lambda_freq=0.0, normalize=True)

    def gradient(copies: int) -> Tensor:
        weight = torch.ones(4, 1, 1, dtype=torch.float64, requires_grad=True)
        x, noise, style, fake = (draw(seed).repeat(copies, 1, 1, 1) for seed in range(4))
        t, m = T.repeat(copies), relevance().repeat(copies, 1, 1, 1)
        z = weight * x
        z_t = schedule.add_noise(z, noise, t)
        g = objective.gradient(style, fake, t=t, schedule=schedule, relevance=m, z=z, z_t=z_t)
        latent_surrogate(z, g).mean().backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(2), gradient(1))


def test_sample_does_not_depend_on_its_neighbours(schedule: NoiseSchedule) -> None:
    objective = StyleMatchingObjective(lambda_freq=0.0, weight="posterior_variance", normalize=True)
    tensors = {"t": T, "relevance": relevance(), "z": draw(2), "z_t": draw(3)}
    whole = objective.gradient(draw(0), draw(1), schedule=schedule, **tensors)
    alone = {name: value[1:2] for name, value in tensors.items()}
    torch.testing.assert_close(objective.gradient(draw(0)[1:2], draw(1)[1:2], schedule=schedule, **alone), whole[1:2])


def test_runs_without_reading_values_back() -> None:
    schedule = NoiseSchedule(scaled_linear_betas()).to("meta")
    z = torch.empty(SHAPE, device="meta")
    t = torch.empty(3, dtype=torch.long, device="meta")
    for weight in WEIGHTS:
        objective = StyleMatchingObjective(lambda_freq=0.0, weight=weight, normalize=True)  # type: ignore[arg-type]
        g = objective.gradient(z, z, t=t, schedule=schedule, relevance=z[:, :1], z=z, z_t=schedule.add_noise(z, z, t))
        assert latent_surrogate(z, g).shape == (3,)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"objective\.weight='snr'"):
        StyleMatchingObjective(lambda_freq=1.0, weight="snr")  # type: ignore[arg-type]
    for name in ("lambda_freq", "style_guidance", "fake_guidance"):
        with pytest.raises(UserError, match=rf"objective\.{name}=-1"):
            StyleMatchingObjective(**{"lambda_freq": 1.0, name: -1.0})  # type: ignore[arg-type]
