from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule, cfg, scaled_linear_betas

SHAPE = (3, 4, 5, 7)


def make(prediction_type: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule(scaled_linear_betas(), prediction_type).double()


def draw(seed: int = 0, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


T = torch.tensor([0, 400, 999])


def test_betas_of_stable_diffusion() -> None:
    betas = scaled_linear_betas()
    assert betas.dtype == torch.float64
    assert betas.shape == (1000,)
    assert betas[0].item() == pytest.approx(0.00085)
    assert betas[-1].item() == pytest.approx(0.012)
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_alpha_bar_is_the_product_and_falls() -> None:
    schedule = make()
    assert schedule.num_steps == 1000
    everything = schedule.alpha_bar(torch.arange(1000))
    assert everything.shape == (1000, 1, 1, 1)
    torch.testing.assert_close(everything.flatten()[2], torch.prod(1 - scaled_linear_betas()[:3]))
    assert (everything.flatten().diff() < 0).all()


def test_noised_latent_per_sample() -> None:
    schedule = make()
    z, noise = draw()
    z_t = schedule.add_noise(z, noise, T)
    for i, t in enumerate(T):
        ab = schedule.alphas_cumprod[t]
        torch.testing.assert_close(z_t[i], ab.sqrt() * z[i] + (1 - ab).sqrt() * noise[i])


def test_x0_inverts_add_noise() -> None:
    schedule = make()
    z, noise = draw()
    torch.testing.assert_close(schedule.x0_from_eps(schedule.add_noise(z, noise, T), noise, T), z)


def test_eps_from_v_recovers_the_noise_and_epsilon_passes_through() -> None:
    z, noise = draw()
    schedule = make("v_prediction")
    ab = schedule.alpha_bar(T)
    v = ab.sqrt() * noise - (1 - ab).sqrt() * z
    torch.testing.assert_close(schedule.eps_from_prediction(v, schedule.add_noise(z, noise, T), T), noise)
    assert make().eps_from_prediction(v, z, T) is v


def test_posterior_variance_closed_form() -> None:
    schedule = make()
    betas, ab = schedule.betas, schedule.alphas_cumprod
    variance = schedule.posterior_variance(torch.tensor([1, 2, 500]), stride=2)
    assert variance.shape == (3, 1, 1, 1)
    # Before step 0 there is no noise, hence no variance; from step 2 on the code's formula.
    expected = torch.stack([torch.zeros_like(ab[0]), *(betas[t] * (1 - ab[t - 2]) / (1 - ab[t]) for t in (2, 500))])
    torch.testing.assert_close(variance.flatten(), expected)
    one = schedule.posterior_variance(torch.tensor([500]), stride=1)
    torch.testing.assert_close(one.flatten()[0], betas[500] * (1 - ab[499]) / (1 - ab[500]))


def test_keeps_dtype_of_the_latent() -> None:
    schedule = NoiseSchedule(scaled_linear_betas())
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        z, noise = (value.to(dtype) for value in draw())
        z_t = schedule.add_noise(z, noise, T)
        assert z_t.dtype == schedule.x0_from_eps(z_t, noise, T).dtype == dtype


def test_half_precision_modules_do_not_round_the_schedule() -> None:
    schedule = NoiseSchedule(scaled_linear_betas())
    before = schedule.alphas_cumprod.clone()
    schedule.bfloat16()
    assert torch.equal(schedule.alphas_cumprod, before)
    schedule.half().double()
    assert torch.equal(schedule.alphas_cumprod, torch.cumprod(1 - scaled_linear_betas(), 0))


def test_is_in_no_checkpoint() -> None:
    assert not NoiseSchedule(scaled_linear_betas()).state_dict()


def test_guidance_convention() -> None:
    cond, uncond = draw()
    torch.testing.assert_close(cfg(cond, uncond, 1.0), cond)
    torch.testing.assert_close(cfg(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(cfg(cond, uncond, 3.0), cond + 2 * (cond - uncond))


def test_refusals() -> None:
    with pytest.raises(UserError, match="'sample'"):
        NoiseSchedule(scaled_linear_betas(), "sample")
    with pytest.raises(UserError, match="betas"):
        NoiseSchedule(torch.tensor([0.1, 1.5]))
    with pytest.raises(UserError, match="betas"):
        NoiseSchedule(torch.full((2, 2), 0.1))


def test_zero_terminal_signal_stays_finite() -> None:
    """Schedules rescaled to end in pure noise have a last beta of 1."""
    betas = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).betas
    assert betas[-1] == 1
    schedule = NoiseSchedule(betas, "v_prediction")
    z, noise, t = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), torch.tensor([999])
    z_t = schedule.add_noise(z, noise, t)
    torch.testing.assert_close(z_t, noise, atol=1e-3, rtol=0)
    torch.testing.assert_close(schedule.eps_from_prediction(torch.randn_like(z), z_t, t), z_t, atol=1e-2, rtol=0)
    assert schedule.x0_from_eps(z_t, noise, t).isfinite().all()


def flow_view(shift: float = 1.0) -> tuple[NoiseSchedule, list[torch.Tensor], torch.Tensor]:
    """A flow's schedule, z, noise, z_s and z_t, and s as (B, 1, 1, 1)."""
    schedule = make("flow").shifted(shift).double()
    z, noise = draw()
    s = schedule.flow_time(T).view(-1, 1, 1, 1)
    return schedule, [z, noise, (1 - s) * z + s * noise, schedule.add_noise(z, noise, T)], s


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_sees_its_own_latent_and_its_velocity_is_noise_and_clean_latent(shift: float) -> None:
    schedule, (z, noise, z_s, z_t), s = flow_view(shift)
    torch.testing.assert_close(schedule.network_input(z_t, T), z_s)
    v, other = noise - z, draw(1)[0]
    eps, eps_other = (schedule.eps_from_prediction(one, z_t, T) for one in (v, other))
    torch.testing.assert_close(eps, noise)
    torch.testing.assert_close(eps_other - eps, (1 - s) * (other - v))
    x0, x0_other = (schedule.x0_from_eps(z_t, one, T) for one in (eps, eps_other))
    torch.testing.assert_close(x0, z)
    torch.testing.assert_close(x0 - x0_other, s * (other - v))
    assert make().network_input(z_t, T) is z_t


def test_equal_signal_to_noise_and_the_shift() -> None:
    t = torch.tensor([21, 80, 250, 499, 980])
    plain = make("flow")
    s = plain.flow_time(t)
    torch.testing.assert_close(s, torch.tensor([0.124, 0.230, 0.410, 0.617, 0.929]).double(), atol=5e-4, rtol=0)
    for k in (0.5, 3.0):
        shifted = plain.shifted(k).double()
        assert shifted.prediction_type == "flow"
        torch.testing.assert_close(shifted.flow_time(t), k * s / (1 + (k - 1) * s))
        assert shifted.posterior_variance(t).isfinite().all()
    with pytest.raises(UserError, match=r"teacher\.shift"):
        plain.shifted(0)


def test_denoising_steps_are_euler_steps_of_the_flow() -> None:
    """From t = 999 to 400, for any velocity field: a step in z_t by eps and x0 is one of length s' - s along v."""
    schedule, (_, _, _, z_t), s = flow_view()
    v, after = draw(1)[0], torch.tensor([0, 100, 400])
    eps = schedule.eps_from_prediction(v, z_t, T)
    stepped = schedule.add_noise(schedule.x0_from_eps(z_t, eps, T), eps, after)
    euler = schedule.network_input(z_t, T) + (schedule.flow_time(after).view(-1, 1, 1, 1) - s) * v
    torch.testing.assert_close(schedule.network_input(stepped, after), euler)
