"""Steps with NaN or Inf: nothing moves, they are counted and traced, and the average and a resumed run stay exact."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tiny import tiny_fit, tiny_module
from torch import Tensor, nn

from smsff.method.module import StyleMatching
from smsff.method.warmup import ReconstructionWarmup
from smsff.training.nonfinite import Evidence, Outcome, StepGuard, all_nan_unless_finite, nonfinite, origin
from smsff.training.optimizer import GroupOptions, build_optimizer, update_average

VALUES = [float("nan"), float("inf"), float("-inf")]


class BadAt(pl.Callback):
    """Puts a value into one sample of the generator's output, a score or the gradient, at some steps."""

    def __init__(self, where: str, steps: list[int], value: float = float("nan")) -> None:
        self.where, self.steps, self.value = where, steps, value
        self.states: list[dict[str, Any]] = []
        self.outcomes: list[Outcome] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            if trainer.global_step not in self.steps or not torch.is_tensor(output):
                return None
            output = output.clone()
            output[1] = self.value
            return output

        part = {"generator": pl_module.generator, "score": pl_module.teacher.style, "fake": pl_module.fake}
        if self.where in part:
            part[self.where].register_forward_hook(spoil)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.where == "backward" and trainer.global_step in self.steps:
            pl_module.generator.to_rgb.weight.grad.view(-1)[0] = self.value

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        state = {**pl_module.state_dict(), **{f"{i}.{k}": v for i, one in optimizer.items() for k, v in one.items()}}
        self.states.append({name: value.clone() for name, value in state.items()})
        self.outcomes += pl_module.guard.outcomes()


def fit(module: StyleMatching, bad: BadAt, steps: int, **options: Any) -> pl.Trainer:
    return tiny_fit(module, steps, [bad], **options)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["generator", "score", "fake", "backward"])
def test_a_bad_step_changes_nothing_and_the_next_one_goes_on(where: str, value: float) -> None:
    bad = BadAt(where, [3], value)
    fit(tiny_module(warmup=ReconstructionWarmup(steps=1), steps=8), bad, 6)
    before, at, after = bad.states[2], bad.states[3], bad.states[4]
    assert before.keys() == at.keys()
    for name in before:
        assert torch.equal(before[name], at[name]), name
        assert torch.isfinite(after[name].double()).all(), name
    assert not torch.equal(at["generator.to_rgb.weight"], after["generator.to_rgb.weight"])
    assert not torch.equal(at["fake.mean"], after["fake.mean"])
    assert int(after["ema.n_averaged"]) == 4
    assert [(o.step, o.skipped, o.in_a_row, o.total) for o in bad.outcomes] == [
        (0, False, 0, 0),
        (1, False, 0, 0),
        (2, False, 0, 0),
        (3, True, 1, 1),
        (4, False, 0, 1),
        (5, False, 0, 1),
    ]
    stage, images, _ = origin(bad.outcomes[3].batches)
    expected = {"generator": "generator", "score": "style_score", "fake": "fake_score", "backward": None}
    assert stage == expected[where]
    assert images == ([0, 1, 2, 3] if where == "backward" else [1])
    assert {"t", "fake_t"} == bad.outcomes[3].batches[0].times.keys()


def test_the_very_first_step_may_be_bad() -> None:
    bad = BadAt("generator", [0, 1])
    module = tiny_module(steps=8)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, bad, 3)
    assert all(torch.equal(start[name], bad.states[1][name]) for name in start)
    assert int(module.ema.n_averaged) == 1
    assert torch.equal(module.ema.module.to_rgb.weight, module.generator.to_rgb.weight)
    assert module.guard.state_dict() == {"in_a_row": 0, "total": 2}


def test_one_bad_micro_batch_spoils_its_whole_step_and_no_other() -> None:
    class OneBatch(BadAt):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.steps = [2] if batch_idx == 4 else []

    bad = OneBatch("generator", [])
    fit(tiny_module(steps=8), bad, 5, accumulate_grad_batches=2)
    assert [o.skipped for o in bad.outcomes] == [False, False, True, False, False]
    stage, images, guilty = origin(bad.outcomes[2].batches)
    assert (stage, images, len(guilty)) == ("generator", [1], 1)
    assert [one.iteration for one in bad.outcomes[2].batches] == [4, 5]


def test_counts_go_through_a_checkpoint() -> None:
    bad = BadAt("generator", [1, 3, 4])
    module = tiny_module(steps=8)
    trainer = fit(module, bad, 5)
    saved = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    assert saved["bad_steps"] == {"in_a_row": 2, "total": 3}
    other = tiny_module(steps=8)
    other.on_load_checkpoint(saved)
    assert other.guard.state_dict() == {"in_a_row": 2, "total": 3}
    del saved["bad_steps"]
    saved["optimizer_states"][0]["param_groups"][0]["fused"] = None  # as in a checkpoint from before
    other.on_load_checkpoint(saved)
    assert other.guard.state_dict() == {"in_a_row": 0, "total": 0}
    assert saved["optimizer_states"][0]["param_groups"][0]["fused"] is True


def test_gradients_so_large_that_their_norm_overflows_are_a_bad_step() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer({"one": ([parameter], GroupOptions(lr=0.1))})
    guard = StepGuard()
    for size, kept in ((1e30, True), (1.0, False)):
        parameter.grad = torch.full((4,), size)
        before = parameter.detach().clone()
        guard.decide(optimizer, {"one": parameter.grad.norm()}, step=0)
        optimizer.step()
        assert torch.equal(before, parameter) is kept


def test_a_loss_that_is_not_finite_spoils_every_gradient_and_a_finite_one_none() -> None:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    all_nan_unless_finite((weight**2).sum() + torch.tensor(float("inf"))).backward()
    assert torch.isnan(weight.grad).all()  # type: ignore[arg-type]
    weight.grad = None
    all_nan_unless_finite((weight**2).sum()).backward()
    assert torch.equal(weight.grad, torch.tensor([4.0, 6.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found_wherever_it_lies(bad: float, dtype: torch.dtype) -> None:
    for count in (1, 7, 64, 3 * 97 * 101):  # vectors of the processor, whole and not
        for place in (0, count // 2, count - 1):
            x = torch.randn(2, count).to(dtype)
            x[1, place] = bad
            assert nonfinite(x).tolist() == [False, True]
            assert nonfinite(x.view(2, count, 1).expand(2, count, 3)).tolist() == [False, True]
    assert nonfinite(torch.tensor([0.0, bad], dtype=dtype)).tolist() == [False, True]


def test_the_first_stage_with_a_sample_that_is_not_finite_is_the_origin() -> None:
    x = torch.zeros(3, 2, 4)
    x[2, 1, 3] = float("inf")
    fine, one = Evidence(0, torch.tensor([7, 8, 9])), Evidence(1, torch.tensor([4, 5, 6]))
    fine.stages = {"latent": torch.tensor([False] * 3)}
    one.stages = {"latent": torch.tensor([False] * 3), "score": nonfinite(x), "gradient": torch.tensor([True] * 3)}
    assert origin([fine, one]) == ("score", [6], [one])
    assert origin([fine]) == (None, [7, 8, 9], [])


def test_an_average_is_a_copy_at_first_then_follows_and_stands_still_where_told() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    expected = None
    for n in range(5):
        nn.init.normal_(model.weight)
        skip = torch.tensor(float(n == 2))
        update_average(average, model, decay=0.3, skip=skip)
        if n == 2:
            continue
        decay = min(0.3, (1 + int(average.n_averaged) - 1) / (10 + int(average.n_averaged) - 1))
        now = model.weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(average.module.weight, expected)
    assert int(average.n_averaged) == 4
