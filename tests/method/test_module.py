from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from gaussian import GaussianTeacher
from tiny import TinyGenerator, given_scores, tiny_batch, tiny_fit, tiny_module
from torch import Tensor

from smsff.errors import UserError
from smsff.generator.image import ImageGenerator, LatentGenerator
from smsff.method.draws import Draws
from smsff.method.module import StyleMatching
from smsff.method.prompts import Prompts
from smsff.method.relevance import UniformRelevance
from smsff.method.space import PixelSpace
from smsff.method.spectrum import NoRegularizer
from smsff.method.timesteps import Narrowing, Uniform
from smsff.method.warmup import ReconstructionWarmup
from smsff.teacher.condition import Condition
from smsff.training.optimizer import GroupOptions


class Recorder(pl.Callback):
    """Keeps the logged figures of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(module: StyleMatching, steps: int, **options: Any) -> tuple[pl.Trainer, Recorder]:
    recorder = Recorder()
    return tiny_fit(module, steps, [recorder], **options), recorder


def test_generator_reaches_the_style_of_a_gaussian_teacher_and_the_fake_follows() -> None:
    # without the spectrum term the fixed point is the style's mean, 2.
    module = tiny_module(
        warmup=ReconstructionWarmup(steps=0),
        steps=250,
        relevance=UniformRelevance(),
        regularizer=NoRegularizer(),
        generator_options=GroupOptions(lr=2e-2),
        fake_options=GroupOptions(lr=2e-2),
    )
    run(module, 250)
    assert module.generator(tiny_batch()["image"]).mean().item() == pytest.approx(2.0, abs=0.5)
    assert module.fake.mean.item() == pytest.approx(2.0, abs=0.7)


def test_warm_up_trains_reconstruction_and_fake_then_matching_starts_at_its_own_iteration_zero() -> None:
    seen: list[tuple[int, int]] = []

    class Spy(Narrowing):
        def __call__(self, u: Tensor, iteration: int, total: int) -> Tensor:
            seen.append((iteration, total))
            return super().__call__(u, iteration, total)

    module = tiny_module(warmup=ReconstructionWarmup(steps=3), steps=6, timesteps=Spy())
    _, recorder = run(module, 6)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert [("train/reconstruction" in row, "train/matching" in row) for row in recorder.rows[:3]] == [
        (True, False)
    ] * 3
    assert "train/matching" in recorder.rows[3]
    assert all(row["train/fake"] > 0 for row in recorder.rows)


def test_a_warm_up_that_ends_by_its_error_ends_there_and_the_checkpoint_knows() -> None:
    seen: list[tuple[int, int]] = []

    class Spy(Narrowing):
        def __call__(self, u: Tensor, iteration: int, total: int) -> Tensor:
            seen.append((iteration, total))
            return super().__call__(u, iteration, total)

    warmup = ReconstructionWarmup(steps=5, until=0.01)  # the generator starts as the identity
    module = tiny_module(warmup=warmup, steps=6, timesteps=Spy())
    _, recorder = run(module, 4)
    assert "train/reconstruction" in recorder.rows[0]
    assert seen == [(0, 5), (1, 5), (2, 5)]
    other = tiny_module(warmup=ReconstructionWarmup(steps=5, until=0.01), steps=6)
    other.on_load_checkpoint(saved(module))
    assert not other.warmup.active(1)


def test_every_promised_figure_is_logged() -> None:
    _, recorder = run(tiny_module(), 4)
    names = "loss matching spectrum fake relevance gradient t_min t_mean t_max"
    names += " grad_norm_generator grad_norm_fake lr_generator lr_fake"
    assert {f"train/{name}" for name in names.split()} <= recorder.rows[-1].keys()
    row = recorder.rows[-1]
    assert row["train/t_min"] <= row["train/t_mean"] <= row["train/t_max"]
    total = row["train/matching"] + 0.01 * row["train/spectrum"] + row["train/fake"]
    assert row["train/loss"] == pytest.approx(total, rel=1e-5)


def step_gradients(module: StyleMatching, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss and all gradients of one step without a trainer."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    module.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in module.named_parameters()}


def test_the_two_losses_reach_disjoint_parameters_and_nothing_frozen() -> None:
    module = tiny_module(warmup=ReconstructionWarmup(steps=0), teacher=GaussianTeacher())
    _, gradients = step_gradients(module, tiny_batch())
    trained = {name for name, gradient in gradients.items() if gradient is not None}
    assert trained == {n for n, _ in module.named_parameters() if n.startswith(("generator.", "fake."))}
    module.zero_grad()
    x = tiny_batch()["image"]
    losses, _ = module.fake_losses(
        module.fake,
        module.generator(x).detach(),
        Draws(0, 0, range(4), like=x),
        Condition(torch.zeros(4, 1, 1)),
        given_scores(),
    )
    losses.mean().backward()
    assert all(parameter.grad is None for parameter in module.generator.parameters())


def test_where_decoder_and_encoder_are_the_identity_both_ways_back_to_the_picture_are_one() -> None:
    gradients = []
    for way in ("encoder", "decoder"):
        torch.manual_seed(0)
        module = tiny_module(warmup=ReconstructionWarmup(steps=0), pullback=way).double()
        batch = tiny_batch(size=3)
        batch["image"] = batch["image"].double()
        gradients.append(step_gradients(module, batch)[1])
    named = {name for name, gradient in gradients[0].items() if gradient is not None}
    assert any(name.startswith("generator.") for name in named)
    for name in named:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-9, atol=1e-15)


def test_the_decoders_way_follows_a_decoder_that_is_not_the_encoders_inverse() -> None:
    latent = GaussianTeacher().double().latent
    latent.decode = lambda q: 3 * q  # type: ignore[method-assign]
    y = torch.randn(2, 3, 6, 9, dtype=torch.float64, requires_grad=True)
    space, offset = PixelSpace(latent, pullback="decoder"), torch.zeros(2, 2, dtype=torch.long)
    z = space.encode(y, offset)
    space.output_loss(0.5 * z.square().mean(), z, y, offset).backward()
    torch.testing.assert_close(y.grad, 3 * z.detach() / z.numel())
    assert z.grad is None


def test_duplicating_the_batch_changes_neither_loss_nor_gradient() -> None:
    batch, module = tiny_batch(size=2), tiny_module(warmup=ReconstructionWarmup(steps=0)).double()
    batch["image"] = batch["image"].double()
    double = {k: torch.cat([v, v]) if isinstance(v, Tensor) else v + v for k, v in batch.items()}
    loss, gradients = step_gradients(module, batch)
    again, twice = step_gradients(module, double)
    assert again.item() == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(twice[name], gradient, rtol=1e-9, atol=1e-15)


def test_a_sample_sees_the_same_noise_whichever_process_has_it() -> None:
    x = tiny_batch()["image"]
    whole, part = Draws(3, 7, [0, 1, 2, 3], like=x), Draws(3, 7, [2, 3], like=x)
    assert torch.equal(whole.normal("noise", (3, 8, 12))[2:], part.normal("noise", (3, 8, 12)))
    assert torch.equal(whole.uniform("t")[2:], part.uniform("t"))
    assert not torch.equal(whole.uniform("t"), whole.uniform("fake_t/0"))
    assert part.uniform("t", per="batch").tolist() == [whole.uniform("t")[0].item()] * 2


def test_an_offset_is_below_its_bound_and_keyed_by_position() -> None:
    x = tiny_batch()["image"]
    draws, part = Draws(3, 7, [0, 1, 2, 3], like=x), Draws(3, 7, [2, 3], like=x)
    offset = draws.offset(8)
    assert offset.shape == (4, 2)
    assert offset.min() >= 0
    assert 1 < offset.max() < 8
    assert torch.equal(part.offset(8), offset[2:])
    assert len({tuple(o) for o in offset.tolist()}) > 1
    assert not draws.offset(1).any()


def test_target_and_source_get_the_same_noise_and_time() -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    teacher = GaussianTeacher()

    def record(name: str, score: Any) -> Any:
        def call(z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
            seen[name] = (z_t, t)
            return score(z_t, t, cond)

        return call

    teacher.__dict__["base"], teacher.__dict__["style"] = record("base", teacher.base), record("style", teacher.style)
    del teacher._modules["base"], teacher._modules["style"]
    # The generator starts as the identity, so target and source are equal, and so must be their noised latents.
    step_gradients(tiny_module(teacher=teacher, warmup=ReconstructionWarmup(steps=0)), tiny_batch())
    assert torch.equal(seen["base"][0], torch.cat([seen["style"][0]] * 2))
    assert torch.equal(seen["base"][1], torch.cat([seen["style"][1]] * 2))


def test_several_fake_draws_average_their_losses() -> None:
    x, cond = tiny_batch()["image"], Condition(torch.zeros(4, 1, 1))
    draws = Draws(0, 5, range(4), like=x)
    one, three = tiny_module(), tiny_module(fake_draws=3)
    losses = []
    for k in range(3):
        t = one.fake_timesteps(draws.uniform(f"fake_t/{k}"), 0, 10)
        losses.append(one.fake.loss(x, draws.normal(f"fake_noise/{k}", (3, 8, 12)), t, cond).mean())
    for module, expected in ((one, losses[:1]), (three, losses)):
        found, _ = module.fake_losses(module.fake, x, draws, cond, given_scores())
        assert found.mean().item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_average_follows_the_weights_after_each_step() -> None:
    module = tiny_module(ema_decay=0.5, steps=4)
    seen: list[Tensor] = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            seen.append(module.generator.to_rgb.bias.detach().clone())

    tiny_fit(module, 3, [Weights()])
    average = seen[0]
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(module.ema.module.to_rgb.bias, average)
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())


def test_accumulated_micro_batches_count_as_one_step() -> None:
    module = tiny_module(steps=3, warmup=ReconstructionWarmup(steps=1))
    trainer, recorder = run(module, 3, accumulate_grad_batches=2)
    assert trainer.global_step == 3
    assert len(recorder.rows) == 6
    assert int(module.ema.n_averaged) == 3


def test_latent_generator_needs_no_encoder_gradient_and_moves() -> None:
    batch = tiny_batch(size=1)
    module = tiny_module(generator=LatentGenerator(batch["image"]), warmup=ReconstructionWarmup(steps=0))
    _, gradients = step_gradients(module, batch)
    assert gradients["generator.value"].abs().sum() > 0
    assert module.stylize(batch["image"]).shape == batch["image"].shape


def test_a_held_picture_is_encoded_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = tiny_batch(size=1)
    module = tiny_module(generator=LatentGenerator(batch["image"]), warmup=ReconstructionWarmup(steps=0))
    assert not module.space.needs_encoder
    whole = {**batch, "name": ["a"]}
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    wanted = module.validation_step(whole, 0)
    module.space.hold(batch["image"])
    module.preview.hold(batch["image"])

    def encode(x: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(module.teacher.latent, "encode", encode)
    found = module.validation_step(whole, 0)
    torch.testing.assert_close(
        [found[k] for k in ("result", "relevance")], [wanted[k] for k in ("result", "relevance")]
    )
    module.training_step(batch, 0)


def test_image_generator_stays_in_range() -> None:
    batch = tiny_batch(size=1)
    module = tiny_module(
        generator=ImageGenerator(batch["image"]),
        warmup=ReconstructionWarmup(steps=0),
        generator_options=GroupOptions(lr=0.5),
        steps=5,
    )
    tiny_fit(module, 5, [], [{**batch, "iteration": torch.tensor([i])} for i in range(5)])
    assert module.generator.value.abs().max() <= 1


def test_validation_returns_whole_pictures_of_any_size() -> None:
    module = tiny_module()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = {"image": torch.rand(1, 3, 37, 21) * 2 - 1, "caption": ["a photo"], "name": ["a.jpg"]}
    pictures = module.validation_step(batch, 0)
    assert pictures["result"].shape == batch["image"].shape
    assert pictures["relevance"].shape == (1, 1, 37, 21)
    assert 0 <= pictures["relevance"].min() <= pictures["relevance"].max() <= 1 + 1e-6
    plain = tiny_module(relevance=UniformRelevance())
    plain.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert "relevance" not in plain.validation_step(batch, 0)


def saved(module: StyleMatching) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


class HeavyTeacher(GaussianTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.unet = torch.nn.Linear(4, 4).requires_grad_(False)


def test_the_teacher_is_in_no_checkpoint_but_everything_trained_is() -> None:
    module = tiny_module(teacher=HeavyTeacher(), record={"style": {"name": "cel"}})
    checkpoint = saved(module)
    assert not any(name.startswith("teacher.") for name in checkpoint["state_dict"])
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained <= checkpoint["state_dict"].keys()
    assert any(name.startswith("ema.module.") for name in checkpoint["state_dict"])
    assert checkpoint["hyper_parameters"]["style"] == {"name": "cel"}


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    module = tiny_module()
    checkpoint = saved(module)
    module.on_load_checkpoint(checkpoint)
    lacking = {"state_dict": {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("ema.")}}
    with pytest.raises(UserError, match=r"lacks .*ema\."):
        module.on_load_checkpoint(lacking)
    with pytest.raises(UserError, match=r"unknown.*fake\..*another generator, objective or fake_score"):
        module.on_load_checkpoint({"state_dict": {**checkpoint["state_dict"], "fake.extra": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"shape.*features"):
        tiny_module(generator=TinyGenerator(width=5)).on_load_checkpoint(checkpoint)


def test_prompts_are_filled_in_and_unknown_fields_refused() -> None:
    prompts = Prompts(words="ink", style="{words}, {caption}", source="{caption}", edit="Turn it into {words}")
    assert prompts.of("a dog") == ("ink, a dog", "a dog", "Turn it into ink")
    with pytest.raises(UserError, match=r"prompts\.edit"):
        Prompts(words="ink", style="", source="", edit="{name}")


def test_same_step_twice_is_the_same_to_the_bit() -> None:
    torch.manual_seed(3)
    first = step_gradients(tiny_module(fake_timesteps=Uniform(t_min=5)), tiny_batch(4))
    torch.manual_seed(3)
    module = tiny_module(fake_timesteps=Uniform(t_min=5))
    torch.randn(1000)  # whatever was drawn in between does not matter
    second = step_gradients(module, tiny_batch(4))
    assert torch.equal(first[0], second[0])
