"""Every objective as a user has it: its preset, trained feed-forward and per picture, and what a step of it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian import GaussianTeacher
from test_config import composed
from test_train import NETWORK, command, configuration, finished, tiny, train_script  # noqa: F401
from tiny import tiny_batch, tiny_module
from torch import Tensor, nn

from smsff.build import build
from smsff.config.check import check_config
from smsff.errors import UserError
from smsff.method.dds import DeltaDenoising
from smsff.method.gradient import Objective
from smsff.method.module import StyleMatching
from smsff.method.pds import PosteriorDistillation
from smsff.method.relevance import SemanticRelevance, UniformRelevance
from smsff.method.sds import ScoreDistillation
from smsff.method.sms import StyleMatchingObjective
from smsff.method.timesteps import Uniform
from smsff.method.warmup import ReconstructionWarmup
from smsff.teacher.condition import Condition

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml"))
WITH_FAKE = {"dmd", "sms", "sms_official", "sms_paper", "vsd"}
CLASSES = {
    "sds": ScoreDistillation,
    "dds": DeltaDenoising,
    "pds": PosteriorDistillation,
    "sms": StyleMatchingObjective,
}


@pytest.mark.parametrize(
    ("preset", "mode"),
    [  # the others are run by experiments
        *((preset, mode) for preset in ("sds", "dds", "pds", "vsd", "dmd") for mode in ("feed-forward", "per-image")),
        ("sms_paper", "feed-forward"),
        ("sms_official", "feed-forward"),
    ],
)
def test_every_preset_trains(preset: str, mode: str, tiny: list[str], tmp_path: Path) -> None:  # noqa: F811
    rest = NETWORK if mode == "feed-forward" else ["experiment=per_image", "data.short_side=32"]
    cfg = configuration(*tiny, *rest, f"objective={preset}", "steps=2", f"run_dir={tmp_path}", "logger=none")
    train_script.train(cfg)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["status"], metrics["steps"]) == ("finished", 2)
    figures = metrics["figures"]
    assert figures["train/matching"] > 0
    assert figures["train/grad_norm_generator"] > 0
    assert {"train/fake" in figures, "train/grad_norm_fake" in figures} == {preset in WITH_FAKE}
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any("lora" in name for name in state) is (preset in WITH_FAKE)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_other_timesteps_a_spectrum_term_and_a_relevance_map(preset: str) -> None:
    groups = ["timesteps=annealing", "regularizer=spectrum", "relevance=semantic"]
    plain = composed(f"objective={preset}", *groups)
    check_config(plain)
    assert plain["regularizer"]["_target_"].endswith("SpectrumRegularizer")
    assert plain["relevance"]["_target_"].endswith("SemanticRelevance")
    assert plain["regularizer"]["lambda_freq"] > 0


def test_presets_are_the_numbers_of_their_sources() -> None:
    plain = {preset: composed(f"objective={preset}") for preset in PRESETS}
    range_of = {preset: (p["timesteps"]["t_min"], p["timesteps"]["t_max"]) for preset, p in plain.items()}
    assert {preset: range_of[preset] for preset in ("sds", "dds", "pds", "vsd", "dmd")} == {
        "sds": (20, 980),
        "dds": (50, 948),
        "pds": (21, 979),
        "vsd": (20, 980),
        "dmd": (20, 980),
    }
    guidance = {preset: p["objective"]["style_guidance"] for preset, p in plain.items()}
    assert (guidance["sds"], guidance["dds"], guidance["pds"]) == (101.0, 7.5, 100.0)
    assert (guidance["vsd"], guidance["dmd"]) == (7.5, 1.75)
    assert plain["vsd"]["objective"]["fake_guidance"] == plain["dmd"]["objective"]["fake_guidance"] == 1
    assert (plain["sds"]["objective"]["weight"], plain["dds"]["objective"]["weight"]) == ("sigma2", "uniform")
    assert (plain["pds"]["timesteps"]["grid"], plain["pds"]["objective"]["stride"]) == ("odd", 2)
    for preset in ("sds", "dds", "pds", "vsd", "dmd"):
        assert plain[preset]["regularizer"]["_target_"].endswith("NoRegularizer")
        assert plain[preset]["relevance"]["_target_"].endswith("UniformRelevance")
    for preset in ("vsd", "dmd"):
        assert (plain[preset]["fake_timesteps"]["t_min"], plain[preset]["fake_timesteps"]["t_max"]) == (0, 999)
        assert plain[preset]["prompts"]["source"] == plain[preset]["prompts"]["style"]
    for preset in ("dds", "pds"):
        assert plain[preset]["prompts"]["source"] == "{caption}"
        assert composed(f"objective={preset}", "objective.style_guidance=3")["objective"]["source_guidance"] == 3


def test_a_stride_beyond_the_smallest_t_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.stride=22.*timesteps\.t_min=21"):
        check_config(composed("objective=pds", "objective.stride=22"))


class Counter(nn.Module):
    """A score that counts the samples it predicts."""

    def __init__(self, name: str, score: nn.Module, counts: dict[str, int]) -> None:
        super().__init__()
        self.name, self.score, self.counts = name, score, counts

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.counts[self.name] = self.counts.get(self.name, 0) + len(z_t)
        eps: Tensor = self.score(z_t, t, cond)
        return eps


def counted(objective: Objective, **changes: Any) -> tuple[StyleMatching, dict[str, int]]:
    """A module and what its scores are asked, in samples."""
    counts: dict[str, int] = {}
    teacher = GaussianTeacher()
    teacher.style, teacher.base = (Counter(n, getattr(teacher, n), counts) for n in ("style", "base"))  # type: ignore
    module = tiny_module(
        teacher=teacher,
        objective=objective,
        warmup=ReconstructionWarmup(steps=0),
        timesteps=Uniform(),
        **{"relevance": UniformRelevance(), **changes},
    )
    if module.fake is not None:
        module.fake.register_forward_hook(  # type: ignore[attr-defined]
            lambda _, args, __: counts.update(fake=counts.get("fake", 0) + len(args[0]))
        )
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    return module, counts


@pytest.mark.parametrize(
    ("objective", "passes"),
    [  # for each sample, with the numbers of the presets; the loss of the fake is one of its passes
        (ScoreDistillation(), {"style": 2}),
        (DeltaDenoising(), {"style": 2, "base": 2}),
        (DeltaDenoising(reference="style"), {"style": 4}),
        (PosteriorDistillation(), {"style": 2, "base": 2}),
        (StyleMatchingObjective(style_guidance=7.5), {"style": 2, "fake": 2}),
        (StyleMatchingObjective(), {"style": 1, "fake": 2}),
        (StyleMatchingObjective(style_guidance=4.5, fake_guidance=4.5), {"style": 2, "fake": 3}),
        (ScoreDistillation(style_guidance=1.0), {"style": 1}),
    ],
)
def test_scores_that_are_not_needed_are_not_computed(objective: Objective, passes: dict[str, int]) -> None:
    module, counts = counted(objective)
    module.training_step(tiny_batch(size=3), 0)
    assert counts == {name: 3 * count for name, count in passes.items()}
    module, counts = counted(objective, relevance=SemanticRelevance())
    module.training_step(tiny_batch(size=3), 0)
    expected = {**passes, "base": passes.get("base", 0) + 2}
    assert counts == {name: 3 * count for name, count in expected.items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_of_the_objectives_has_what_a_step_costs(preset: str) -> None:
    lines = (ROOT / "docs" / "reference" / "objectives.md").read_text().splitlines()
    cells = [cell.strip() for cell in next(x for x in lines if x.startswith(f"| `{preset}` |")).strip("|").split("|")]
    plain = composed("style=ghibli", f"objective={preset}")
    objective = build(plain["objective"])
    module, counts = counted(objective, relevance=build(plain["relevance"]))
    module.training_step(tiny_batch(size=2), 0)
    passes = sum(counts.values()) // 2
    assert cells[-1] == (f"{passes - 1} + T" if objective.needs_fake else str(passes))
    assert f"`{plain['objective']['_target_'].split('.', 1)[1].rpartition('.')[0].replace('.', '/')}.py`" in cells


@pytest.mark.parametrize("name", CLASSES)
def test_the_generator_gets_the_gradient_of_the_objective_times_the_relevance(name: str) -> None:
    """A picture that is optimised itself gets m g / N from the loss."""
    seen: dict[str, Tensor] = {}

    class Half(UniformRelevance):
        def __call__(self, eps_edit: Tensor, eps_null: Tensor) -> Tensor:
            return super().__call__(eps_edit, eps_null) / 2

    objective = CLASSES[name]()
    module, _ = counted(objective, relevance=Half())
    original = type(objective).gradient

    class Watched(type(objective)):  # type: ignore[misc]
        def gradient(self, *args: Any) -> Tensor:
            seen["g"] = original(self, *args)
            return seen["g"]

    module.objective = Watched()
    batch = tiny_batch()
    y = batch["image"].clone().requires_grad_()
    module.generator.forward = lambda x: y  # type: ignore[method-assign]
    module.grid_jitter = 1
    module.training_step(batch, 0).backward()
    assert seen["g"].abs().max() > 0
    torch.testing.assert_close(y.grad, 0.5 * seen["g"] / y.numel())


@pytest.mark.parametrize("name", CLASSES)
def test_a_fake_is_trained_only_where_one_is_needed(name: str) -> None:
    module = tiny_module(objective=CLASSES[name]())
    groups = [group["name"] for group in module.configure_optimizers()["optimizer"].param_groups]  # type: ignore
    assert groups == (["generator", "fake"] if name in WITH_FAKE else ["generator"])
    assert any(key.startswith("fake.") for key in module.state_dict()) is (name in WITH_FAKE)
    assert any(key.startswith("fake.") for key in module.saved_keys()) is (name in WITH_FAKE)


def test_an_objective_that_asks_for_a_fake_it_did_not_order_is_told() -> None:
    class Wrong(StyleMatchingObjective):
        needs_fake = False

    module, _ = counted(Wrong())
    with pytest.raises(RuntimeError, match="needs_fake = False"):
        module.training_step(tiny_batch(), 0)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sds", "vsd"])
def test_two_processes_equal_one_with_and_without_a_fake(
    preset: str,
    tiny: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    network = [option for option in NETWORK if not option.startswith("data.batch_size")]
    common = [*tiny, *network, f"objective={preset}", "steps=6", "sample_every=100", "trainer.precision=64-true"]
    finished(command(*common, "trainer.devices=2", "data.batch_size=1", f"run_dir={tmp_path / 'two'}", cwd=tmp_path))
    train_script.train(configuration(*common, "data.batch_size=2", f"run_dir={tmp_path / 'one'}"))
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weights in one.items():
        if weights.is_floating_point():
            assert (two[name] - weights).abs().max() / weights.abs().max().clamp(min=1e-12) < 1e-5, name
