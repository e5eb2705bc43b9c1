"""The LoRA that is trained: where it acts, what it leaves alone, and that both ways of applying it are one function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from styled import LAYERS

from smsff.errors import UserError
from smsff.style_lora.adapter import LoraOptions, TrainableStyle
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion


def inputs(teacher: StableDiffusionTeacher) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, teacher.latent.channels, 8, 12), torch.tensor([5, 400, 999])


def shake(style: TrainableStyle) -> None:
    """Give the up matrices values, as training does."""
    generator = torch.Generator().manual_seed(2)
    for parameter in (*style.unet_parameters.values(), *style.text_parameters.values()):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_it_starts_as_the_base_and_touches_nothing_else(tiny_base: Path) -> None:
    teacher = load_stable_diffusion(base=str(tiny_base))
    before = {name: p.clone() for name, p in load_stable_diffusion(base=str(tiny_base)).unet.named_parameters()}
    style = TrainableStyle(teacher, LoraOptions(rank=2, target_modules=LAYERS))
    z, t = inputs(teacher)
    cond = style.encode(["a", "b", ""])
    assert torch.equal(style.output(z, t, cond), style.base_output(z, t, cond))
    trained = {id(p) for p in style.unet_parameters.values()}
    assert {id(p) for p in teacher.parameters() if p.requires_grad} == trained
    shake(style)
    assert not torch.allclose(style.output(z, t, cond), style.base_output(z, t, cond), atol=1e-3)
    torch.testing.assert_close(teacher.style(z, t, cond), style.output(z, t, cond).detach())
    after = {name.replace(".base_layer", ""): p for name, p in teacher.unet.named_parameters() if ".lora_" not in name}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_merged_weights_are_the_same_function_with_the_same_gradient(
    kind: str, tiny_pipeline: Callable[..., Path]
) -> None:
    base = tiny_pipeline(prediction_type=kind)
    found = []
    for merged in (False, True):
        teacher = load_stable_diffusion(base=str(base))
        style = TrainableStyle(teacher, LoraOptions(rank=3, alpha=6.0, target_modules=LAYERS, merged=merged))
        shake(style)
        z, t = inputs(teacher)
        output = style.output(z, t, style.encode(["a", "b", ""]))
        output.square().mean().backward()
        found.append((output.detach(), {n: p.grad for n, p in style.unet_parameters.items()}))
    (plain, gradients), (merged_output, merged_gradients) = found
    torch.testing.assert_close(merged_output, plain, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(merged_gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_checkpointing_changes_no_gradient(tiny_base: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        teacher = load_stable_diffusion(base=str(tiny_base))
        options = LoraOptions(rank=2, target_modules=LAYERS, gradient_checkpointing=checkpointing)
        style = TrainableStyle(teacher, options)
        shake(style)
        z, t = inputs(teacher)
        style.output(z, t, style.encode(["a", "b", ""])).square().mean().backward()
        gradients.append([p.grad for p in style.unet_parameters.values()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_text_encoders_are_trained_only_where_asked(tiny_base: Path) -> None:
    teacher = load_stable_diffusion(base=str(tiny_base))
    style = TrainableStyle(teacher, LoraOptions(rank=2, target_modules=LAYERS, text_rank=2))
    assert style.text_parameters
    shake(style)
    z, t = inputs(teacher)
    cond = style.encode(["a", "b", ""])
    assert not torch.allclose(cond.tokens, teacher.encode_prompts(["a", "b", ""]).tokens, atol=1e-3)
    style.output(z, t, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in style.text_parameters.values())


def test_contradictions_are_refused(tiny_base: Path, tiny_lora: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.target_modules: nowhere"):
        TrainableStyle(load_stable_diffusion(base=str(tiny_base)), LoraOptions(target_modules=["nowhere"]))
    halved = load_stable_diffusion(base=str(tiny_base), dtype="bfloat16")
    with pytest.raises(UserError, match="float32"):
        TrainableStyle(halved, LoraOptions(target_modules=LAYERS, merged=True))
    styled = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora))
    with pytest.raises(UserError, match=r"teacher\.lora"):
        TrainableStyle(styled, LoraOptions(target_modules=LAYERS))
