"""Every file under conf/ is composed and held against the code, and what is wrong is refused by name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from smsff.config import (
    check_arguments,
    check_config,
    check_style_files,
    check_targets,
    find_checkpoint,
    fits,
    resolve,
)
from smsff.errors import UserError
from smsff.launch import explain

CONF = Path(__file__).parent.parent / "conf"
CHOICES = sorted(
    f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra",)
)


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides=["run_dir=unused", *overrides]))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_fits_the_code(choice: str) -> None:
    needed = ["data.root=photos"] if choice == "data=folder" else []
    plain = composed(choice, *needed)
    check_config(plain)


@pytest.mark.parametrize("style", sorted(path.stem for path in (CONF / "style").glob("*.yaml")))
def test_a_style_brings_its_teacher_and_its_words(style: str) -> None:
    plain = composed(f"style={style}")
    bundled = plain["style"]["page"] is None if "page" in plain["style"] else True
    assert plain["style"]["name"] == style
    assert plain["teacher"]["lora"] == plain["style"]["lora"]
    assert (plain["teacher"]["base"] == "stable-diffusion-v1-5/stable-diffusion-v1-5") is not bundled
    assert plain["data"]["crop_size"] == plain["style"]["resolution"]


def test_the_official_objective_is_the_authors_code_switch_by_switch() -> None:
    plain = composed("experiment=sms_official")
    assert plain["objective"]["weight"] == "posterior_variance"
    assert plain["objective"]["style_guidance"] == plain["objective"]["fake_guidance"] == 4.5
    assert plain["objective"]["lambda_freq"] == 5e-4
    assert plain["regularizer"]["norm"] == "l1"
    assert plain["regularizer"]["t_scale"] == 500
    assert plain["relevance"]["reduce"] == "abs_mean"
    assert plain["fake_score"]["loss_weight"] == "alpha_bar_squared"
    for name in ("timesteps", "fake_timesteps"):
        assert {key: plain[name][key] for key in ("t_min", "t_max", "per", "grid")} == {
            "t_min": 21,
            "t_max": 499,
            "per": "batch",
            "grid": "odd",
        }
    generator, fake = plain["optimizer"]["generator"], plain["optimizer"]["fake"]
    assert (generator["lr"], generator["weight_decay"], generator["horizon"], generator["warmup_steps"]) == (
        0.1,
        0.01,
        1.5,
        100,
    )
    assert (fake["lr"], fake["schedule"], fake["clip_norm"]) == (1e-3, "constant", None)
    assert generator["betas"] == fake["betas"] == [0.9, 0.999]
    assert (plain["fake_score"]["rank"], plain["fake_score"]["alpha"]) == (8, 32)
    assert plain["fake_score"]["target_modules"] == ["to_q", "to_v"]
    assert plain["prompts"]["style"] == plain["prompts"]["source"] == "{words}, {caption}"


def test_ablation_rows_switch_off_what_they_say() -> None:
    targets = {
        name: tuple(
            composed(f"experiment=ablation_{name}")[group]["_target_"].rpartition(".")[2]
            for group in ("regularizer", "relevance", "timesteps")
        )
        for name in ("style_only", "spectrum", "full", "random_t", "linear_t")
    }
    assert targets == {
        "style_only": ("NoRegularizer", "UniformRelevance", "Narrowing"),
        "spectrum": ("SpectrumRegularizer", "UniformRelevance", "Narrowing"),
        "full": ("SpectrumRegularizer", "SemanticRelevance", "Narrowing"),
        "random_t": ("SpectrumRegularizer", "SemanticRelevance", "Uniform"),
        "linear_t": ("SpectrumRegularizer", "SemanticRelevance", "Annealing"),
    }


def test_the_command_line_beats_a_preset() -> None:
    plain = composed("objective=sms_official", "regularizer=none", "teacher=embedded", "style=ghibli")
    assert plain["regularizer"] == {"_target_": "smsff.objective.spectrum.NoRegularizer"}
    assert plain["teacher"]["base"].endswith("teacher")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+objective.lambda_frek=1"], r"objective\.lambda_frek.*nearest: objective\.lambda_freq|nearest: lambda_freq"),
        (["+sede=1"], r"sede.*nearest: seed"),
        (["+trainer.devicess=1"], r"trainer\.devicess.*nearest: devices"),
        (["+style.page2=x"], r"style\.page2.*nearest: page"),
        (["+optimizer.generator.lrs=1"], r"lrs.*nearest: lr"),
        (["+callbacks.samples.images=1"], r"callbacks\.samples\.images.*nearest: max_images"),
        (["seed=abc"], r"seed='abc'.*int"),
        (["steps=1.5"], r"steps=1\.5.*int"),
        (["objective.lambda_freq=much"], r"objective\.lambda_freq='much'.*float"),
        (["objective.normalize=1"], r"objective\.normalize=1.*bool"),
        (["relevance=semantic", "relevance.reduce=max"], r"relevance\.reduce='max'.*mean_abs, abs_mean"),
        (["fake_score.target_modules=to_q"], r"fake_score\.target_modules='to_q'"),
        (["data.scale=[a,b]"], r"data\.scale"),
        (["steps=0"], r"steps=0.*at least 1"),
        (["trainer.precision=16-mixed"], r"trainer\.precision=16-mixed.*bf16-mixed"),
        (["generator._target_=os.system"], r"generator\._target_=os\.system.*smsff"),
        (["generator._target_=smsff.generator.unet.UNet"], r"cannot be imported"),
        (["data=folder"], r"data\.root: no value"),
    ],
)
def test_what_is_wrong_is_refused_by_name(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(composed(*overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("style=gibli", "nearest: ghibli"),
        ("stlye=cel", "nearest: style"),
        ("trainer.devicess=2", r"nearest: trainer\.devices"),
        ("objective.lamda_freq=2", r"nearest: objective\.lambda_freq"),
        ("a=b=[", "a"),
    ],
)
def test_what_hydra_refuses_is_explained_in_one_message(override: str, message: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    text = explain(caught.value, config_dir=CONF, config_name="train")
    assert override.partition("=")[0] in text
    assert re.search(message, text)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (1, bool, False),
        ("a", str, True),
        (None, str, False),
        (None, str | None, True),
        ("x", Path, True),
        ("l1", Literal["l1", "l2"], True),
        ("l3", Literal["l1", "l2"], False),
        (1, Literal[True], False),
        ([1, 2.5], Sequence[float], True),
        (["a"], Sequence[float], False),
        ("ab", Sequence[str], False),
        ({"a": 1}, dict, True),
        ([1], dict, False),
        ({"_target_": "x"}, int, False),
        ({"_target_": "x"}, Path | None, True),
        ("x", Any, True),
    ],
)
def test_types_are_those_of_yaml(value: object, kind: object, expected: bool) -> None:
    assert fits(value, kind) is expected


def test_missing_and_extra_arguments_are_named() -> None:
    def target(*, a: int, b: str = "x") -> None: ...

    check_arguments(target, {"a": 1}, "node")
    with pytest.raises(UserError, match="node: a missing"):
        check_arguments(target, {"b": "y"}, "node")
    check_arguments(target, {"b": "y"}, "node", partial=True)
    with pytest.raises(UserError, match=r"node\.c: there is no such key"):
        check_arguments(target, {"a": 1, "c": 2}, "node")


def test_nested_targets_are_checked_too() -> None:
    node = {"outer": [{"_target_": "smsff.optimizer.GroupOptions", "lr": 1.0, "betta": 1}]}
    with pytest.raises(UserError, match=r"outer\.0\.betta.*betas"):
        check_targets(node, "")


def test_a_missing_lora_says_where_to_get_it_and_where_to_put_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    style = composed("style=pixel_art")["style"]
    with pytest.raises(UserError, match=r"weights/3232pixel\.safetensors.*civitai\.com.*31228"):
        check_style_files(style)
    (tmp_path / "weights").mkdir()
    (tmp_path / style["lora"]).touch()
    with pytest.raises(UserError, match=r"weights/anything-v4\.5"):
        check_style_files(style)
    (tmp_path / style["base"]).mkdir()
    check_style_files(style)


def test_last_is_the_folders_own_checkpoint_or_else_the_newest_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "c"
    assert find_checkpoint(None, run) is None
    with pytest.raises(UserError, match="ckpt_path=last"):
        find_checkpoint("last", run)
    with pytest.raises(UserError, match=r"ckpt_path=.*no such file"):
        find_checkpoint(str(tmp_path / "x.ckpt"), run)
    paths = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("a", "b/0")]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert find_checkpoint("last", run) == paths[0]
    own = run / "checkpoints" / "last.ckpt"
    own.parent.mkdir(parents=True)
    own.touch()
    os.utime(own, (1, 1))
    assert find_checkpoint("last", run) == own
    assert find_checkpoint(str(paths[1]), run) == paths[1]


def test_the_printed_configuration_is_complete_and_without_surprises() -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(composed("relevance=semantic")))
    assert "???" not in text
    for key in ("lambda_freq", "weight", "fake_guidance", "norm", "reduce", "loss_weight", "root"):
        assert f" {key}:" in text
