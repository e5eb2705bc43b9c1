from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny import TinyGenerator, tiny_batch, tiny_module
from torch import Tensor
from torch.utils.data import DataLoader

from smsff.errors import UserError
from smsff.generator.image import ImageGenerator, LatentGenerator
from smsff.module import Draws, Prompts, StyleMatching
from smsff.objective.gradient import latent_surrogate
from smsff.objective.relevance import UniformRelevance
from smsff.objective.relevance_cache import CachedRelevance
from smsff.objective.replay import Replay
from smsff.objective.sms import StyleMatchingObjective
from smsff.objective.timesteps import Narrowing, Uniform
from smsff.objective.warmup import ReconstructionWarmup
from smsff.optimizer import GroupOptions
from smsff.teacher.condition import Condition
from smsff.teacher.gaussian import GaussianTeacher


class Recorder(pl.Callback):
    """Keeps the logged figures of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(module: StyleMatching, steps: int, **options: Any) -> tuple[pl.Trainer, Recorder]:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[recorder],
        **options,
    )
    batches = options.get("accumulate_grad_batches", 1) * steps
    trainer.fit(module, DataLoader([tiny_batch(i) for i in range(batches)], batch_size=None))
    return trainer, recorder


def test_generator_reaches_the_style_of_a_gaussian_teacher_and_the_fake_follows() -> None:
    # lambda 0: the fixed point is the style's mean, 2.
    module = tiny_module(
        warmup=ReconstructionWarmup(steps=0),
        steps=250,
        relevance=UniformRelevance(),
        objective=StyleMatchingObjective(lambda_freq=0.0),
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
    fake_only = module.fake_loss(
        module.fake, module.generator(x).detach(), Draws(0, 0, range(4), like=x), Condition(torch.zeros(4, 1, 1))
    )
    fake_only.backward()
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
    module = tiny_module(warmup=ReconstructionWarmup(steps=0), pullback="decoder").double()
    z, y = (torch.randn(2, 3, 6, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    module.teacher.latent.decode = lambda q: 3 * q  # type: ignore[method-assign]
    step = module.decoded_step(0.5 * z.square().mean(), z, y)
    torch.testing.assert_close(step, 3 * z.detach())
    latent_surrogate(y, step).mean().backward()
    torch.testing.assert_close(y.grad, 3 * z.detach() / z.numel())
    assert z.grad is None


def replaying(**changes: Any) -> StyleMatching:
    options = {
        "pullback": "decoder",
        "warmup": ReconstructionWarmup(steps=0),
        "replay": Replay(every=3, size=4, draws=1),
    }
    return tiny_module(**{**options, **changes})


def test_a_target_learned_again_at_once_gives_the_gradient_of_the_step() -> None:
    replay = Replay(every=3, size=4, draws=1, relaxation=1.7)
    module, batch = replaying(grid_jitter=3, replay=replay), tiny_batch(size=1)
    _, gradients = step_gradients(module, batch)
    module.zero_grad()
    module.replay_loss(Draws(0, 1, [0], like=batch["image"])).backward()
    for name, parameter in module.generator.named_parameters():
        expected = gradients[f"generator.{name}"]
        torch.testing.assert_close(parameter.grad, expected, rtol=0.02, atol=1e-5)  # kept in 16 bits


def test_scores_are_asked_in_every_third_step_and_the_fake_learns_in_every_second() -> None:
    module = replaying(steps=7, fake_every=2)
    asked, fakes, moved = [], [], []
    gradient, loss = module.objective.gradient, module.fake.loss
    module.objective.__dict__["gradient"] = lambda *a, **k: (asked.append(module.global_step), gradient(*a, **k))[1]
    module.fake.__dict__["loss"] = lambda *a, **k: (fakes.append(module.global_step), loss(*a, **k))[1]
    start = [p.detach().clone() for _, p in module.fake.trainable_parameters()]

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            now = [p.detach().clone() for _, p in module.fake.trainable_parameters()]
            moved.append(any(not torch.equal(a, b) for a, b in zip(start, now, strict=True)))
            start[:] = now

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=7, accelerator="cpu", enable_model_summary=False, callbacks=[Watch()], **options)
    trainer.fit(module, DataLoader([tiny_batch(i) for i in range(7)], batch_size=None))
    assert asked == [0, 3, 6]
    assert fakes == [0, 2, 4, 6]
    assert moved == [True, False, True, False, True, False, True]
    assert module.replay.count == 12


def test_what_is_kept_goes_through_a_checkpoint() -> None:
    module, other = replaying(), replaying()
    step_gradients(module, tiny_batch())
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    u = torch.tensor([0.1, 0.4, 0.9])
    for ours, theirs in zip(module.replay.draw(u), other.replay.draw(u), strict=True):
        assert torch.equal(ours, theirs)


def test_relaxation_scales_the_step_that_is_asked_for() -> None:
    batch, norms = tiny_batch(size=1), []
    for relaxation in (1.0, 3.0):
        module = replaying(replay=Replay(every=3, size=4, relaxation=relaxation))
        torch.manual_seed(0)
        _, gradients = step_gradients(module, batch)
        norms.append(gradients["generator.to_rgb.bias"])
    torch.testing.assert_close(norms[1], 3 * norms[0])


def test_within_a_generation_the_scores_are_asked_about_the_generator_of_its_beginning() -> None:
    module = replaying(replay=Replay(every=2, size=8, draws=1, hold=4), steps=9, grid_jitter=3)
    held: list[dict[str, Tensor]] = []
    averages: list[dict[str, Tensor]] = []
    targets: list[Tensor] = []

    def copy(network: torch.nn.Module) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in network.state_dict().items()}

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            held.append(copy(module.held))
            averages.append(copy(module.ema.module))

    put = module.replay.put
    module.replay.put = lambda x, target, offset: (targets.append(target), put(x, target, offset))[1]  # type: ignore[method-assign]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=9, accelerator="cpu", enable_model_summary=False, callbacks=[Watch()], **options)
    trainer.fit(module, DataLoader([tiny_batch(i) for i in range(9)], batch_size=None))
    for step, expected in enumerate([0] * 4 + [4] * 4 + [8]):
        source = averages[expected - 1] if expected else dict(TinyGenerator().state_dict())
        for name in ("to_rgb.weight", "to_rgb.bias"):
            assert torch.equal(held[step][name], source[name]), (step, name)
    assert not torch.equal(averages[3]["to_rgb.bias"], averages[7]["to_rgb.bias"])
    assert len(targets) == 5


def test_the_held_generator_gives_targets_and_latents_and_gets_no_gradient() -> None:
    module, batch = replaying(replay=Replay(every=2, size=4, draws=1, hold=4)), tiny_batch(size=1)
    plain = replaying(replay=Replay(every=2, size=4, draws=1))
    plain.generator.load_state_dict(module.generator.state_dict())
    (_, ours), (_, theirs) = step_gradients(module, batch), step_gradients(plain, batch)
    for name, gradient in theirs.items():  # at the beginning both are the identity
        torch.testing.assert_close(ours[name], gradient, msg=name)
    assert not any(name.startswith("held") for name, p in module.named_parameters() if p.requires_grad)
    with torch.no_grad():
        module.generator.to_rgb.bias += 0.5
    x, offset = batch["image"], torch.zeros(1, 2, dtype=torch.long)
    torch.testing.assert_close(module.result_latents(x, offset), module.encode_source(x))
    assert "held.to_rgb.bias" in module.saved_keys()


def test_what_is_learned_again_must_be_pictures() -> None:
    with pytest.raises(UserError, match=r"replay\.every=3: .*pullback=decoder"):
        replaying(pullback="encoder")
    with pytest.raises(UserError, match="fake_every=0"):
        tiny_module(fake_every=0)


def test_an_unknown_way_back_to_the_picture_is_refused() -> None:
    with pytest.raises(UserError, match="pullback='both' is not one of encoder, decoder"):
        tiny_module(pullback="both")


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


def test_grid_offset_is_below_its_bound_keyed_by_position_and_can_be_switched_off() -> None:
    x = tiny_batch()["image"]
    draws, part = Draws(3, 7, [0, 1, 2, 3], like=x), Draws(3, 7, [2, 3], like=x)
    offset = tiny_module(grid_jitter=8).grid_offset(draws)
    assert offset.shape == (4, 2)
    assert offset.min() >= 0
    assert 1 < offset.max() < 8
    assert torch.equal(tiny_module(grid_jitter=8).grid_offset(part), offset[2:])
    assert len({tuple(o) for o in offset.tolist()}) > 1
    assert not tiny_module(grid_jitter=1).grid_offset(draws).any()
    with pytest.raises(UserError, match="grid_jitter=0"):
        tiny_module(grid_jitter=0)


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
    assert one.fake_loss(one.fake, x, draws, cond).item() == pytest.approx(losses[0].item(), rel=1e-6)
    assert three.fake_loss(three.fake, x, draws, cond).item() == pytest.approx(
        torch.stack(losses).mean().item(), rel=1e-6
    )


def test_average_follows_the_weights_after_each_step() -> None:
    module = tiny_module(ema_decay=0.5, steps=4)
    seen: list[Tensor] = []

    class Weights(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
            pass

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            seen.append(module.generator.to_rgb.bias.detach().clone())

    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Weights()],
    )
    trainer.fit(module, DataLoader([tiny_batch(i) for i in range(3)], batch_size=None))
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


@pytest.mark.parametrize("cached", [False, True])
def test_a_held_picture_is_encoded_no_more(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    batch = tiny_batch(size=1)
    relevance = {"relevance": CachedRelevance()} if cached else {}
    module = tiny_module(generator=LatentGenerator(batch["image"]), warmup=ReconstructionWarmup(steps=0), **relevance)
    assert module.needs_encoder is cached
    whole = {**batch, "name": ["a"]}
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    wanted = module.validation_step(whole, 0)
    module.hold(batch["image"])
    assert not {"source", "preview"} & module.state_dict().keys()

    def encode(x: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(module, "encode_source", encode)
    found = module.validation_step(whole, 0)
    torch.testing.assert_close(
        [found[k] for k in ("result", "relevance")], [wanted[k] for k in ("result", "relevance")]
    )
    if not cached:
        module.training_step(batch, 0)


def test_image_generator_stays_in_range() -> None:
    batch = tiny_batch(size=1)
    module = tiny_module(
        generator=ImageGenerator(batch["image"]),
        warmup=ReconstructionWarmup(steps=0),
        generator_options=GroupOptions(lr=0.5),
        steps=5,
    )
    trainer = pl.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([{**batch, "iteration": torch.tensor([i])} for i in range(5)], batch_size=None))
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
    with pytest.raises(UserError, match="unknown"):
        module.on_load_checkpoint({"state_dict": {**checkpoint["state_dict"], "fake.extra": torch.zeros(1)}})
    with pytest.raises(UserError, match=r"shape.*features"):
        tiny_module(generator=TinyGenerator(width=5)).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"steps": 2}, "steps"), ({"fake_draws": 0}, "fake_draws"), ({"ema_decay": 1.0}, "ema_decay")],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        tiny_module(**changes)


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
