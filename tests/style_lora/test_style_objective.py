"""The loss of a style LoRA: closed forms and identities."""

from __future__ import annotations

import pytest
import torch

from smsff.errors import UserError
from smsff.method.schedule import NoiseSchedule, scaled_linear_betas
from smsff.style_lora.objective import (
    PowerTimesteps,
    StyleLoss,
    check_bands,
    denoising_target,
    min_snr_weight,
    weighted_error,
)

T = torch.tensor([0, 7, 250, 999])


def schedule(kind: str) -> NoiseSchedule:
    return NoiseSchedule(scaled_linear_betas(), kind).double()


def test_min_snr_is_the_papers_closed_form() -> None:
    ab = torch.tensor([0.05, 0.5, 0.8, 0.9999], dtype=torch.float64)
    snr = ab / (1 - ab)
    for gamma in (1.0, 5.0):
        capped = snr.clamp(max=gamma)
        torch.testing.assert_close(min_snr_weight(ab, "epsilon", gamma), capped / snr, rtol=1e-12, atol=0)
        torch.testing.assert_close(min_snr_weight(ab, "v_prediction", gamma), capped / (snr + 1), rtol=1e-12, atol=0)
    for kind in ("epsilon", "v_prediction", "flow"):
        assert torch.equal(min_snr_weight(ab, kind, None), torch.ones_like(ab))
    # pure noise, where SNR is 0: eps counts fully, and v says nothing about the picture
    nothing = torch.zeros(1, dtype=torch.float64)
    assert min_snr_weight(nothing, "epsilon", 5.0).item() == 1
    assert min_snr_weight(nothing, "v_prediction", 5.0).item() == 0


def test_min_snr_is_one_loss_however_the_network_predicts() -> None:
    """The same error of the clean latent costs min(SNR, gamma), said in eps, in v or in a flow's velocity."""
    torch.manual_seed(0)
    z, noise, wrong = (torch.randn(4, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    expected = None
    for kind in ("epsilon", "v_prediction", "flow"):
        noisy = schedule(kind)
        z_t, ab = noisy.add_noise(z, noise, T), noisy.alpha_bar(T)
        target, prediction = denoising_target(noisy, z, z_t, T), denoising_target(noisy, wrong, z_t, T)
        loss = weighted_error(prediction, target, min_snr_weight(ab, kind, 5.0))
        expected = ((ab / (1 - ab)).clamp(max=5) * (wrong - z).square()).mean((1, 2, 3))
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_the_target_is_the_usual_one_where_nothing_is_degraded(kind: str) -> None:
    noisy = schedule(kind)
    z, noise = torch.randn(4, 2, 3, 5, dtype=torch.float64), torch.randn(4, 2, 3, 5, dtype=torch.float64)
    ab = noisy.alpha_bar(T)
    v = ab.sqrt() * noise - (1 - ab).sqrt() * z
    usual = {"epsilon": noise, "v_prediction": v, "flow": noise - z}[kind]
    torch.testing.assert_close(denoising_target(noisy, z, noisy.add_noise(z, noise, T), T), usual, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_the_target_leads_to_the_styled_latent_wherever_z_t_comes_from(kind: str) -> None:
    noisy = schedule(kind)
    z, other, noise = (torch.randn(4, 2, 3, 5, dtype=torch.float64) for _ in range(3))
    z_t = noisy.add_noise(other, noise, T)
    eps = noisy.eps_from_prediction(denoising_target(noisy, z, z_t, T), z_t, T)
    torch.testing.assert_close(noisy.x0_from_eps(z_t, eps, T), z, rtol=0, atol=1e-9)


def test_weights_of_ordinary_and_degraded_samples_are_their_own() -> None:
    noisy, degraded = schedule("epsilon"), torch.tensor([False, True, True, False])
    loss = StyleLoss(min_snr_gamma=None, degraded_gamma=3.0)
    ab = noisy.alpha_bar(T)
    weight = loss.weight(noisy, T, degraded)
    expected = torch.where(degraded.view(-1, 1, 1, 1), (3 * (1 - ab) / ab).clamp(max=1), 1.0)
    torch.testing.assert_close(weight, expected)
    assert weight[1] < 0.03
    assert torch.equal(
        StyleLoss(min_snr_gamma=5.0).weight(noisy, T, ~degraded | degraded),
        StyleLoss().weight(noisy, T, degraded | True),
    )


def test_the_prior_is_added_with_its_weight() -> None:
    losses = torch.tensor([1.0, 3.0, 10.0, 30.0])
    assert StyleLoss(prior_weight=0.5).total(losses, 2) == 2 + 0.5 * 20
    assert StyleLoss(prior_weight=0.5).total(losses, 4) == losses.mean()
    assert StyleLoss(prior_weight=0.0).total(losses, 2) == 2


def test_powers_prefer_little_noise() -> None:
    u = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    uniform, squared = PowerTimesteps(t_min=10, t_max=109)(u), PowerTimesteps(t_min=10, t_max=109, power=2.0)(u)
    assert (uniform.min(), uniform.max(), squared.min(), squared.max()) == (10, 109, 10, 109)
    assert torch.bincount(uniform)[10:].min() == torch.bincount(uniform).max() == 100
    assert ((squared < 35).float().mean() - 0.5).abs() < 0.01  # u^2 < 1/4 where u < 1/2
    assert PowerTimesteps(t_min=3, t_max=3)(torch.tensor([0.0, 0.999999])).tolist() == [3, 3]


def test_bands_ascend_within_the_steps_of_the_base() -> None:
    for build in (
        lambda: check_bands([0], 1000),
        lambda: check_bands([0, 100, 100], 1000),
        lambda: check_bands([0, 1001], 1000),
    ):
        with pytest.raises(UserError):
            build()
    check_bands([0, 100, 1000], 1000)
