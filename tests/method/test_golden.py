"""The ``sms_official`` options reproduce the authors' code, tensor by tensor.

Reads every case listed in the ``index.json`` of the folder named by SMSFF_GOLDEN (default: tests/golden).
Bars, relative to the largest absolute value of the tensor: 2e-4 for losses and gradients (the reference forms
z - (z - g) in float32), 1e-5 for everything else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import given_scores
from torch import Tensor

from smsff.method.denoising import denoising_loss, denoising_weight
from smsff.method.gradient import Noised, Objective, Predict, latent_surrogate
from smsff.method.relevance import SemanticRelevance, relevance_map
from smsff.method.schedule import NoiseSchedule, cfg, scaled_linear_betas
from smsff.method.sms import StyleMatchingObjective
from smsff.method.spectrum import SpectrumRegularizer, dct_2d, low_pass_mask
from smsff.method.timesteps import Narrowing

SHIPPED = Path(__file__).parents[1] / "golden"
FOLDER = Path(os.environ.get("SMSFF_GOLDEN", SHIPPED))
LOSS_BAR = 2e-4
TENSOR_BAR = 1e-5


def read_index() -> dict[str, dict[str, Any]]:
    index = FOLDER / "index.json"
    return json.loads(index.read_text())["cases"] if index.is_file() else {}


CASES = read_index()
SCORE = sorted(name for name, case in CASES.items() if case["kind"] == "score")
SMS = [name for name in SCORE if CASES[name]["method"] == "sms"]
DIFFUSION = sorted(name for name, case in CASES.items() if case["kind"] == "diffusion")


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / CASES[name]["file"])


def assert_close(actual: Tensor, expected: Tensor, bar: float = TENSOR_BAR) -> None:
    """Same shape, and no element further off than ``bar`` times the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max().item()
    # Where the reference is zero everywhere, so must we be.
    assert error <= bar * expected.double().abs().max().item()


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(scaled_linear_betas())


def official_objective(case: dict[str, Any]) -> Objective:
    scale = case["guidance_scale"]
    return StyleMatchingObjective(weight="posterior_variance", style_guidance=scale, fake_guidance=scale)


def recorded(r: dict[str, Tensor], model: str) -> Predict:
    """The recorded predictions of a model, which are those at the recorded noised latent and no other."""

    def predict(z_t: Tensor, t: Tensor, *, scale: float) -> Tensor:
        assert_close(z_t, r["tgt_noisy"])
        assert torch.equal(t, r["t"])
        return cfg(r[f"{model}_pred_cond"], r[f"{model}_pred_uncond"], scale)

    return predict


OFFICIAL_SPECTRUM = SpectrumRegularizer(norm="l1", t_scale=500, cutoff="last_axis")
OFFICIAL_RELEVANCE = SemanticRelevance(reduce="abs_mean", normalize="minmax")


def official_gradient(name: str, schedule: NoiseSchedule, *, refined: bool) -> Tensor:
    """g from the recorded predictions; ``refined`` multiplies by the relevance map where the method has one."""
    r = tensors(name)
    scores = given_scores(style=recorded(r, "teacher"), fake=recorded(r, "fake"))
    at = Noised(r["tgt_x0"], r["tgt_x0"], r["noise"], r["t"], schedule)
    g = official_objective(CASES[name]).gradient(scores, at)
    if refined and CASES[name]["method"] == "sms":
        g = g * OFFICIAL_RELEVANCE(r["real_pred_cond"], r["real_pred_uncond"])
    return g


def test_folder_has_cases_of_known_kinds() -> None:
    assert CASES, f"no cases in {FOLDER}"
    assert SCORE, f"no score cases in {FOLDER}"
    assert {case["kind"] for case in CASES.values()} <= {"score", "diffusion"}
    assert {CASES[name]["method"] for name in SCORE} <= {"sms", "vsd"}


def test_schedule(schedule: NoiseSchedule) -> None:
    path = FOLDER / "schedule.safetensors"
    # A folder of further cases need not repeat the schedule, which all cases share.
    recorded = load_file(path if path.is_file() else SHIPPED / path.name)
    assert_close(schedule.betas, recorded["betas"])
    assert_close(1 - schedule.betas, recorded["alphas"])
    assert_close(schedule.alphas_cumprod, recorded["alphas_cumprod"])
    variance = schedule.posterior_variance(recorded["t"], stride=2).flatten()
    assert torch.equal(recorded["t"] - 2, recorded["t_prev"])
    assert_close(variance.sqrt(), recorded["sigma_t"])


@pytest.mark.parametrize("name", SCORE)
def test_noised_latents_and_guidance(name: str, schedule: NoiseSchedule) -> None:
    r = tensors(name)
    scale = CASES[name]["guidance_scale"]
    assert_close(schedule.alpha_bar(r["t"]).flatten(), r["alpha_bar_t"])
    assert_close(schedule.posterior_variance(r["t"]).sqrt().flatten(), r["sigma_t"])
    assert_close(schedule.add_noise(r["tgt_x0"], r["noise"], r["t"]), r["tgt_noisy"])
    assert_close(cfg(r["teacher_pred_cond"], r["teacher_pred_uncond"], scale), r["teacher_cfg"])
    assert_close(cfg(r["fake_pred_cond"], r["fake_pred_uncond"], scale), r["fake_cfg"])
    if "src_noisy" in r:
        assert_close(schedule.add_noise(r["src_x0"], r["noise"], r["t"]), r["src_noisy"])


@pytest.mark.parametrize("name", SCORE)
def test_gradient(name: str, schedule: NoiseSchedule) -> None:
    r = tensors(name)
    assert_close(official_gradient(name, schedule, refined=False), r["grad"], LOSS_BAR)
    refined = official_gradient(name, schedule, refined=True)
    assert_close(refined, r["weighted_grad"] if "weighted_grad" in r else r["grad"], LOSS_BAR)
    assert_close(r["tgt_x0"] - refined, r["target"])


@pytest.mark.parametrize("name", SCORE)
def test_loss_and_its_gradient(name: str, schedule: NoiseSchedule) -> None:
    r = tensors(name)
    z = r["tgt_x0"].clone().requires_grad_()
    g = official_gradient(name, schedule, refined=True)
    # The authors' "vsd" has no spectrum term.
    weight = CASES[name]["lambda_dct"] if CASES[name]["method"] == "sms" else 0.0
    spectrum = weight * OFFICIAL_SPECTRUM(z, r["src_x0"], r["t"])
    loss = (latent_surrogate(z, g) + spectrum).mean()
    assert_close(loss.detach(), r["loss"], LOSS_BAR)
    assert_close(latent_surrogate(z, g).mean().detach(), r["sms_loss_without_psr"], LOSS_BAR)
    (gradient,) = torch.autograd.grad(loss, z)
    assert_close(gradient, r["dloss_dtgt_x0"], LOSS_BAR)


@pytest.mark.parametrize("name", SMS)
def test_relevance(name: str) -> None:
    r = tensors(name)
    raw = relevance_map(r["real_pred_cond"], r["real_pred_uncond"], "abs_mean")
    assert_close(raw[0, 0], r["relevance_raw"])
    assert_close(OFFICIAL_RELEVANCE(r["real_pred_cond"], r["real_pred_uncond"]), r["relevance_weight"])


@pytest.mark.parametrize("name", SMS)
def test_spectrum(name: str) -> None:
    r = tensors(name)
    case = CASES[name]
    height, width = r["tgt_x0"].shape[-2:]
    mask = low_pass_mask(r["t"], height, width, t_scale=500, cutoff="last_axis")
    order = torch.arange(height)[:, None] + torch.arange(width)
    assert torch.equal(mask[0, 0], order <= case["l_threshold"])
    assert_close(mask * dct_2d(r["tgt_x0"]), r["tgt_x0_dct_low"])
    assert_close(mask * dct_2d(r["src_x0"]), r["src_x0_dct_low"])
    term = OFFICIAL_SPECTRUM(r["tgt_x0"], r["src_x0"], r["t"]).mean()
    assert_close((case["lambda_dct"] or 0.0) * term, r["psr_loss"], LOSS_BAR)


@pytest.mark.parametrize("name", [name for name in SMS if CASES[name]["epoch_ratio"] is not None])
def test_timestep_range(name: str) -> None:
    case = CASES[name]
    sampler = Narrowing(t_min=21, t_max=499, grid="odd")
    total = 10_000
    low, high = sampler.bounds(round(case["epoch_ratio"] * total), total)
    assert (low, high) == (2 * case["idx_low"] + 1, 2 * (case["idx_high_exclusive"] - 1) + 1)
    assert case["t"] == 2 * case["idx"] + 1


@pytest.mark.parametrize("name", DIFFUSION)
def test_fake_loss(name: str, schedule: NoiseSchedule) -> None:
    """Loss, and its gradient with respect to the prediction.

    The recorded gradients of the LoRA matrices (lora_grad/*) are this gradient pulled back through the network, which
    is not part of the folder; they cannot be recomputed here. What is ours, the step from the prediction to the loss,
    is checked against its closed form 2 ab_t (weighted_pred - weighted_target) / N on the recorded tensors.
    """
    r = tensors(name)
    assert_close(schedule.alpha_bar(r["t"]).flatten(), r["alpha_bar_t"])
    assert_close(schedule.add_noise(r["tgt_x0"], r["noise"], r["t"]), r["tgt_noisy"])
    prediction = r["fake_pred_cond"].clone().requires_grad_()
    weight = denoising_weight("alpha_bar_squared", schedule.alpha_bar(r["t"]))
    loss = denoising_loss(prediction, r["noise"], weight).mean()
    assert_close(loss.detach(), r["loss"], LOSS_BAR)
    (gradient,) = torch.autograd.grad(loss, prediction)
    expected = 2 * r["alpha_bar_t"] * (r["weighted_pred"] - r["weighted_target"]) / prediction.numel()
    assert_close(gradient, expected, LOSS_BAR)
