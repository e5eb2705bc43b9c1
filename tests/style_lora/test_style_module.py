"""The training step, the held-out loss, and what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from styled import LAYERS, style_lora

from smsff.errors import UserError
from smsff.style_lora.adapter import LoraOptions
from smsff.style_lora.module import HeldOutLoss, Samples, StyleLora
from smsff.style_lora.objective import PowerTimesteps, StyleLoss
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion


def teacher(base: Path, **options: Any) -> StableDiffusionTeacher:
    return load_stable_diffusion(base=str(base), **options)


def batch(
    *, iteration: int = 0, positions: range = range(3), degraded: bool = False, prior: bool = False
) -> dict[str, Any]:
    """B > 1 and H != W; every sample depends on its own position alone."""
    images = torch.stack([torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(p)) * 2 - 1 for p in positions])
    found: dict[str, Any] = {
        "image": images,
        "input": images.flip(-1) if degraded else images,
        "margin": 0,
        "degraded": torch.tensor([degraded and p % 2 == 0 for p in positions]),
        "caption": [f"number {p}" for p in positions],
        "index": torch.tensor(list(positions)),
        "position": torch.tensor(list(positions)),
        "iteration": torch.full((len(positions),), iteration),
    }
    return found | {"prior_image": images.neg(), "prior_caption": ["a thing"] * len(positions)} if prior else found


def loss_of(module: StyleLora, given: dict[str, Any]) -> torch.Tensor:
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return module.training_step(given, 0)


def test_the_step_is_a_denoising_loss_of_the_base_at_the_start(tiny_base: Path) -> None:
    module = style_lora(
        teacher(tiny_base), loss=StyleLoss(min_snr_gamma=None), timesteps=PowerTimesteps(t_min=300, t_max=300)
    )
    found = loss_of(module, batch())
    base, given = teacher(tiny_base), batch()
    z = base.latent.encode(given["image"])
    noise = torch.stack(
        [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in keyed("noise", 3)]
    )
    t = torch.full((3,), 300)
    drops = [torch.rand((), generator=torch.Generator().manual_seed(s)).item() for s in keyed("prompt", 3)]
    prompts = [module.prompts.draw(c, u) for c, u in zip(given["caption"], drops, strict=True)]
    eps = base.base(base.schedule.add_noise(z, noise, t), t, base.encode_prompts(prompts))
    torch.testing.assert_close(found.detach(), (eps - noise).square().mean())
    found.backward()
    gradients = {n: p.grad for n, p in module.style.unet_parameters.items()}
    assert all(g is not None and g.abs().max() > 0 for n, g in gradients.items() if ".lora_B." in n)


def keyed(stream: str, count: int) -> list[int]:
    from smsff.randomness import keyed_seed

    return [keyed_seed(0, stream, 0, p) for p in range(count)]


def test_halves_of_a_batch_are_the_batch(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base))
    whole = loss_of(module, batch(positions=range(4), degraded=True))
    halves = [loss_of(module, batch(positions=p, degraded=True)) for p in (range(2), range(2, 4))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_degrading_nothing_changes_nothing_and_degrading_something_does(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base), loss=StyleLoss(degraded_gamma=None, min_snr_gamma=None))
    plain, same = batch(), batch()
    same["degraded"] = torch.tensor([True, True, True])  # said to be, but it is the picture itself
    torch.testing.assert_close(loss_of(module, same), loss_of(module, plain), rtol=1e-4, atol=1e-6)
    assert (loss_of(module, batch(degraded=True)) / loss_of(module, plain) - 1).abs() > 0.01


def test_class_pictures_add_their_own_weighted_loss(tiny_base: Path) -> None:
    losses = {}
    for weight in (0.0, 1.0, 2.0):
        module = style_lora(teacher(tiny_base), loss=StyleLoss(prior_weight=weight))
        losses[weight] = loss_of(module, batch(prior=True)).item()
    assert losses[0.0] == pytest.approx(loss_of(style_lora(teacher(tiny_base)), batch()).item(), rel=1e-5)
    assert losses[2.0] - losses[1.0] == pytest.approx(losses[1.0] - losses[0.0], rel=1e-3)
    assert losses[1.0] > losses[0.0]


def test_held_out_losses_are_the_bases_until_something_was_learned(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base), held_out=HeldOutLoss(bands=(0, 300, 1000), draws=3, batch=4))
    assert module.held_out.times().tolist() == [50, 150, 250, 416, 650, 883]
    pictures = [torch.rand(1, 3, 16, 24) * 2 - 1 for _ in range(2)]
    for number, picture in enumerate(pictures):
        module.measure(number, picture, "")
    ours, base = module.held_out_losses()
    assert len(ours) == 2
    assert ours == pytest.approx(base, rel=1e-4)
    for parameter in module.style.unet_parameters.values():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    for number, picture in enumerate(pictures):
        module.measure(number, picture, "")
    changed, again = module.held_out_losses()
    assert again == base
    assert changed != pytest.approx(base, rel=1e-3)
    one = style_lora(teacher(tiny_base), held_out=HeldOutLoss(bands=(0, 300, 1000), draws=3, batch=1))
    for number, picture in enumerate(pictures):
        one.measure(number, picture, "")
    assert one.held_out_losses()[1] == pytest.approx(base, rel=1e-4)


def test_prompts_are_embedded_before_the_text_encoder_goes_unless_it_is_trained(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base))
    module.prepare_prompts([f"number {p}" for p in range(3)], ["a thing"])
    assert not module.style.text_encoders
    loss_of(module, batch(prior=True))
    trained = style_lora(teacher(tiny_base), lora=LoraOptions(rank=2, target_modules=LAYERS, text_rank=2))
    trained.prepare_prompts(["a"])
    assert trained.style.text_encoders
    loss_of(trained, batch()).backward()
    optimizer = trained.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text"]
    assert len(optimizer.param_groups[1]["params"]) == len(trained.style.text_parameters)


def test_a_checkpoint_holds_the_lora_alone_and_fits_no_other(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base), record={"config": {"seed": 0}})
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert len(checkpoint["state_dict"]) == len(module.style.unet_parameters)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["hyper_parameters"]["task"] == "style_lora"
    module.on_load_checkpoint(checkpoint)
    for lora in (LoraOptions(rank=3, target_modules=LAYERS), LoraOptions(rank=2, target_modules=["to_q"])):
        with pytest.raises(UserError, match="ckpt_path"):
            style_lora(teacher(tiny_base), lora=lora).on_load_checkpoint(checkpoint)


def test_what_does_not_fit_the_base_is_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="t = 999"):
        style_lora(teacher(tiny_base), timesteps=PowerTimesteps(t_max=1000))
    with pytest.raises(UserError, match="t = 999"):
        style_lora(teacher(tiny_base), samples=Samples(t0=1000))
    with pytest.raises(UserError, match=r"held_out\.bands"):
        style_lora(teacher(tiny_base), held_out=HeldOutLoss(bands=(0, 2000)))


def test_photos_are_stylized_for_the_grids(tiny_base: Path) -> None:
    module = style_lora(teacher(tiny_base))
    photo = torch.rand(1, 3, 21, 30) * 2 - 1
    seen = [module.validation_step({"image": photo, "caption": [""], "name": ["a"]}, 0)["result"] for _ in range(2)]
    assert seen[0].shape == photo.shape
    assert torch.equal(seen[0], seen[1])
    for parameter in module.style.unet_parameters.values():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    after = module.validation_step({"image": photo, "caption": [""], "name": ["a"]}, 0)["result"]
    assert (after - seen[0]).abs().max() > 1e-3
    held_out = module.validation_step({"image": photo, "caption": [""], "held_out": 0, "margin": 0}, 0)
    assert len(held_out["source"]) == 0
