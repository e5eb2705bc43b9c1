from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

TARGETS = ("to_q", "to_v", "to_out.0", "conv1", "proj_in")


@pytest.fixture
def teacher(tiny_base: Path, tiny_lora: Path) -> StableDiffusionTeacher:
    return load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora))


def batch(teacher: StableDiffusionTeacher) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """z, noise, t, cond"""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, teacher.latent.channels, 6, 10, generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    return z, noise, torch.tensor([10, 700]), teacher.encode_prompts(["a cat", "a dog"])


def train(fake: LoraFakeScore, steps: int, lr: float = 1e-2) -> list[float]:
    optimizer = torch.optim.AdamW([parameter for _, parameter in fake.trainable_parameters()], lr=lr)
    losses = []
    for _ in range(steps):
        loss = fake.loss(*batch(fake.teacher)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_an_update_changes_the_fake_score_alone(teacher: StableDiffusionTeacher) -> None:
    z, _, t, cond = batch(teacher)
    fake = LoraFakeScore(teacher, target_modules=TARGETS)
    trained = {id(parameter) for _, parameter in fake.trainable_parameters()}
    frozen = {n: p.clone() for n, p in teacher.named_parameters() if id(p) not in trained}
    base, style = teacher.base(z, t, cond), teacher.style(z, t, cond)
    losses = train(fake, 5)
    assert losses[-1] < losses[0]
    assert not torch.equal(fake(z, t, cond), base)
    assert torch.equal(teacher.base(z, t, cond), base)
    assert torch.equal(teacher.style(z, t, cond), style)
    now = dict(teacher.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_only_the_fake_adapter_is_trainable(teacher: StableDiffusionTeacher) -> None:
    fake = LoraFakeScore(teacher, rank=3, target_modules=("to_q", "conv1"))
    named = dict(fake.trainable_parameters())
    trainable = {id(parameter) for parameter in teacher.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in named.values()}
    assert list(fake.parameters()) == []  # they are the teacher's, and are not to be found twice
    assert len(named) == 2 * len([n for n, _ in teacher.unet.named_modules() if n.endswith((".to_q", ".conv1"))])
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in named)
    assert {len(p) for name, p in named.items() if ".lora_A." in name} == {3}
    fake.loss(*batch(teacher)).sum().backward()
    assert all(parameter.grad is not None for parameter in named.values())
    with teacher.using("style"), teacher.using("fake"):
        pass
    torch.nn.ModuleList([teacher, fake]).train()
    assert trainable == {id(parameter) for parameter in teacher.parameters() if parameter.requires_grad}


def test_no_gradient_into_the_latent(teacher: StableDiffusionTeacher) -> None:
    z, noise, t, cond = batch(teacher)
    z.requires_grad_()
    cond = cond.map(lambda x: x.clone().requires_grad_())
    fake = LoraFakeScore(teacher)
    (fake.loss(z, noise, t, cond).sum() + fake(z, t, cond).sum()).backward()
    assert z.grad is None
    assert cond.tokens.grad is None
    with torch.no_grad():
        assert not fake(z, t, cond).requires_grad


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_of_each_sample(tiny_pipeline: Callable[..., Path], prediction_type: str) -> None:
    folder = str(tiny_pipeline(prediction_type=prediction_type))
    for weight in ("uniform", "alpha_bar_squared"):
        teacher = load_stable_diffusion(base=folder, lora=None)
        fake = LoraFakeScore(teacher, loss_weight=weight)
        z, noise, t, cond = batch(teacher)
        ab = teacher.schedule.alpha_bar(t)
        z_t = ab.sqrt() * z + (1 - ab).sqrt() * noise
        error = ((teacher.base(z_t, t, cond) - noise) ** 2).mean(dim=(1, 2, 3))
        wanted = error * (ab.flatten() ** 2 if weight == "alpha_bar_squared" else 1)
        torch.testing.assert_close(fake.loss(z, noise, t, cond).detach(), wanted, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_recomputes_with_the_fake_adapter(tiny_base: Path, tiny_lora: Path) -> None:
    """The backward pass runs after other scores have switched the adapters."""
    gradients = []
    for checkpointing in (False, True):
        teacher = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora))
        fake = LoraFakeScore(teacher, target_modules=TARGETS, gradient_checkpointing=checkpointing)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in fake.trainable_parameters():
            if ".lora_B." in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        z, noise, t, cond = batch(teacher)
        loss = fake.loss(z, noise, t, cond).sum()
        teacher.style(z, t, cond)
        with teacher.using("style"):
            loss.backward()
            assert teacher.adapters.active == "style"
        gradients.append({name: parameter.grad for name, parameter in fake.trainable_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trains_in_float32_on_a_half_precision_unet(tiny_base: Path, tiny_lora: Path, dtype: str) -> None:
    teacher = load_stable_diffusion(base=str(tiny_base), lora=str(tiny_lora), dtype=dtype)
    fake = LoraFakeScore(teacher, target_modules=TARGETS)
    assert {parameter.dtype for _, parameter in fake.trainable_parameters()} == {torch.float32}
    before = {name: parameter.clone() for name, parameter in fake.trainable_parameters()}
    losses = train(fake, 6)
    assert losses[-1] < losses[0]
    assert all(parameter.grad.dtype == torch.float32 for _, parameter in fake.trainable_parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in fake.trainable_parameters())
    z, _, t, cond = batch(teacher)
    assert fake(z, t, cond).dtype == torch.float32


def test_with_a_second_unet(tiny_pipeline: Callable[..., Path], tiny_lora: Path) -> None:
    other = str(tiny_pipeline(seed=1))
    teacher = load_stable_diffusion(base=str(tiny_pipeline()), lora=str(tiny_lora), style_base=other)
    z, _, t, cond = batch(teacher)
    base, style = teacher.base(z, t, cond), teacher.style(z, t, cond)
    fake = LoraFakeScore(teacher)
    assert torch.equal(fake(z, t, cond), base)
    train(fake, 2)
    assert not torch.equal(fake(z, t, cond), base)
    assert torch.equal(teacher.base(z, t, cond), base)
    assert torch.equal(teacher.style(z, t, cond), style)


def test_start_depends_on_the_seed_alone(tiny_base: Path, tiny_lora: Path) -> None:
    def start(seed: int, draws: int, lora: Path | None = None) -> dict[str, Tensor]:
        torch.randn(draws)
        teacher = load_stable_diffusion(base=str(tiny_base), lora=None if lora is None else str(lora))
        return dict(LoraFakeScore(teacher, seed=seed).trainable_parameters())

    first, same, other = start(0, 0), start(0, 7, tiny_lora), start(1, 0)
    assert list(first) == list(same)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".lora_A." in name)


def test_wrong_settings(teacher: StableDiffusionTeacher) -> None:
    with pytest.raises(
        UserError, match=r"fake_score\.target_modules: to_x, attn1 fits no .*there are .*conv1.*to_out\.0"
    ):
        LoraFakeScore(teacher, target_modules=("to_q", "to_x", "attn1"))
    with pytest.raises(UserError, match=r"fake_score\.target_modules: empty"):
        LoraFakeScore(teacher, target_modules=())
    assert "fake" not in teacher.unet.peft_config
