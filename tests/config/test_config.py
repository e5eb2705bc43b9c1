"""Every file under conf/ is composed and held against the code, and what is wrong is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from smsff.config.check import (
    check_arguments,
    check_config,
    check_style_files,
    check_targets,
    fits,
    resolve,
)
from smsff.config.schema import ANY, check_ranges, range_of
from smsff.errors import UserError
from smsff.method.prompts import Prompts
from smsff.training.launch import explain
from smsff.training.opening import parts_off
from smsff.training.resume import leaves

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name != "baseline")

NEEDED = {
    "data=folder": ["data.root=photos"],
    "data=shards": ["data.root=shards"],
    "task=style_lora": ["data.root=pictures"],
    "experiment=style_lora": ["data.root=pictures"],
    "generator=image": ["data=single"],
    "generator=latent": ["data=single"],
}


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return resolve(compose("train", overrides=["run_dir=unused", *overrides]))


@cache
def chosen(*groups: str) -> dict[str, Any]:
    return composed(*groups)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_fits_the_code(choice: str) -> None:
    plain = composed(choice, *NEEDED.get(choice, []))
    check_config(plain)


@pytest.mark.parametrize("teacher", sorted(path.stem for path in (CONF / "teacher").glob("*.yaml")))
def test_the_style_lora_of_every_teacher_has_only_keys_of_its_own(teacher: str) -> None:
    plain = composed("experiment=style_lora", f"teacher={teacher}", "data.root=pictures")
    check_config(plain)
    assert plain["task"] == "style_lora"
    assert not {"generator", "objective", "style", "resolution", "fake_score", "warmup"} & plain.keys()
    assert "lora" not in plain["teacher"]
    assert plain["data"]["resolution"] % plain["data"]["stride"] == 0


def test_a_style_lora_has_no_generator() -> None:
    with pytest.raises(HydraException, match="generator"):
        composed("experiment=style_lora", "data.root=pictures", "generator=resnet")


@pytest.mark.parametrize("style", sorted(path.stem for path in (CONF / "style").glob("*.yaml")))
def test_a_style_brings_its_teacher_and_its_words(style: str) -> None:
    plain = composed(f"style={style}")
    bundled = plain["style"]["page"] is None if "page" in plain["style"] else True
    assert plain["style"]["name"] == style
    assert plain["teacher"]["lora"] == plain["style"]["lora"]
    assert (plain["teacher"]["base"] == "stable-diffusion-v1-5/stable-diffusion-v1-5") is not bundled
    assert plain["data"]["crop_size"] == plain["resolution"]


def test_the_official_objective_is_the_authors_code_switch_by_switch() -> None:
    plain = composed("experiment=sms_official")
    assert plain["objective"]["weight"] == "posterior_variance"
    assert plain["objective"]["style_guidance"] == plain["objective"]["fake_guidance"] == 4.5
    assert plain["regularizer"]["lambda_freq"] == 5e-4
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


METHOD = {
    "objective/sms.yaml": {
        "objective.weight": "posterior_variance",
        "objective.style_guidance": 4.5,
        "objective.fake_guidance": 4.5,
    },
    "regularizer/spectrum.yaml": {"lambda_freq": 5e-4, "norm": "l1", "t_scale": 500, "cutoff": "exact"},
    "relevance/semantic.yaml": {
        "_target_": "smsff.method.relevance.SemanticRelevance",
        "reduce": "abs_mean",
        "normalize": "minmax",
    },
    "timesteps/narrowing.yaml": {
        "_target_": "smsff.method.timesteps.Narrowing",
        "t_min": 21,
        "t_max": 499,
        "per": "batch",
        "grid": "odd",
    },
    "fake_score/lora.yaml": {
        "rank": 8,
        "alpha": 32,
        "target_modules": ["to_q", "to_v"],
        "loss_weight": "alpha_bar_squared",
    },
    "task/style_matching.yaml": {
        "fake_timesteps.t_min": 21,
        "fake_timesteps.t_max": 499,
        "prompts.style": "{words}, {caption}",
        "prompts.source": "{words}, {caption}",
        "optimizer.fake.lr": 1e-4,
        "pullback": "encoder",
    },
}
"""The authors' numbers, by the file of conf/ that has them."""


def value_at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain[part]
    return plain


@pytest.mark.parametrize("teacher", ["sd15", "sd2", "sdxl"])
def test_stable_diffusion_is_trained_with_the_authors_numbers(teacher: str) -> None:
    plain = composed("style=ghibli", f"teacher={teacher}", "trainer.devices=8")
    check_config(plain)
    for file, values in METHOD.items():
        group = "" if file.startswith(("objective/", "task/")) else file.partition("/")[0] + "."
        of_file = OmegaConf.to_container(OmegaConf.load(CONF / file))
        for key, value in values.items():
            assert (key, value_at(plain, group + key)) == (key, value)
            assert (file, value_at(of_file, key)) == (file, value)
    assert plain["warmup"]["steps"] == 500
    assert composed("style=ghibli", "steps=2000")["warmup"]["steps"] == 100
    assert plain["warmup"]["until"] is None
    assert composed("style=ghibli", "generator=resnet")["warmup"] == {
        **plain["warmup"],
        "steps": 5000,
        "until": 0.06,
    }
    assert (plain["trainer"]["strategy"], plain["trainer"]["devices"]) == ("auto", 8)


def test_a_picture_on_stable_diffusion_has_the_authors_optimizer() -> None:
    plain = composed("style=ghibli", "experiment=per_image")
    official = composed("style=ghibli", "experiment=sms_official")
    assert plain["optimizer"] == official["optimizer"]
    for group, rate in (("generator", 0.1), ("fake", 1e-3)):
        options = plain["optimizer"][group]
        assert (options["lr"], options["betas"], options["eps"]) == (rate, [0.9, 0.999], 1e-8)
        assert (options["weight_decay"], options["clip_norm"]) == (0.01, None)


def test_pixel_art_has_a_lambda_of_its_own_where_the_authors_have() -> None:
    lambdas = {
        o: composed("style=pixel_art", f"objective={o}")["regularizer"]["lambda_freq"] for o in ("sms", "sms_paper")
    }
    assert lambdas == {"sms": 2e-4, "sms_paper": 0.1}
    assert composed("style=pixel_art", "objective=sms_official")["regularizer"]["lambda_freq"] == 2e-4


ROWS = {
    "style_only": {"regularizer", "relevance"},
    "spectrum": {"relevance"},
    "relevance": {"regularizer"},
    "full": set[str](),
    "random_t": {"timesteps._target_"},
    "linear_t": {"timesteps._target_"},
}
"""The keys of each ablation row."""


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "command",
    [
        ["style=ghibli"],
        ["style=ghibli", "objective=sms_official"],
        ["style=ghibli", "objective=sms_paper"],
        ["style=demo_ink"],
        ["style=demo_ink", "objective=sms_official"],
    ],
    ids=" ".join,
)
def test_an_ablation_changes_its_own_row_and_nothing_else(command: list[str], row: str) -> None:
    plain = composed(*command, f"experiment=ablation_{row}")
    whole, less = dict(leaves(chosen(*command))), dict(leaves(plain))
    changed = {key for key in whole.keys() | less.keys() if whole.get(key) != less.get(key)}
    assert all(any(key.startswith(own) for own in ROWS[row]) for key in changed)
    assert {own for own in ROWS[row] if any(key.startswith(own) for key in changed)} == ROWS[row]
    check_config(plain)


def test_what_an_ablation_row_goes_without_is_said() -> None:
    off = {row: parts_off(composed(f"experiment=ablation_{row}")) for row in ROWS}
    assert off == {
        "style_only": ["spectrum term", "relevance map"],
        "spectrum": ["relevance map"],
        "relevance": ["spectrum term"],
        "full": [],
        "random_t": ["narrowing of t (it is Uniform)"],
        "linear_t": ["narrowing of t (it is Annealing)"],
    }


def test_every_prompt_of_ones_own_style_has_its_words() -> None:
    plain = composed("teacher=sd15", "style.lora=mine.safetensors", "style.words='my style'")
    prompts = Prompts(**{name: text for name, text in plain["prompts"].items() if name != "_target_"})
    assert prompts.of("a cat") == ("my style, a cat", "my style, a cat", "turn it into my style")


def test_the_command_line_beats_a_preset() -> None:
    plain = composed("objective=sms_official", "regularizer=none", "teacher=embedded", "style=ghibli")
    assert plain["regularizer"] == {"_target_": "smsff.method.spectrum.NoRegularizer"}
    assert plain["teacher"]["base"].endswith("teacher")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+regularizer.lambda_frek=1"],
            r"regularizer\.lambda_frek.*nearest: regularizer\.lambda_freq|nearest: lambda_freq",
        ),
        (["+sede=1"], r"sede.*nearest: seed"),
        (["+trainer.devicess=1"], r"trainer\.devicess.*nearest: devices"),
        (["+style.page2=x"], r"style\.page2.*nearest: page"),
        (["+weights.lora.sha=x"], r"weights\.lora\.sha.*nearest: sha256"),
        (["weights.base.name=5"], r"weights\.base\.name=5.*str"),
        (["+optimizer.generator.lrs=1"], r"lrs.*nearest: lr"),
        (["+callbacks.samples.images=1"], r"callbacks\.samples\.images.*nearest: max_images"),
        (["seed=abc"], r"seed='abc'.*int"),
        (["steps=1.5"], r"steps=1\.5.*int"),
        (["regularizer.lambda_freq=much"], r"regularizer\.lambda_freq='much'.*float"),
        (["objective.normalize=1"], r"objective\.normalize=1.*bool"),
        (["relevance=semantic", "relevance.reduce=max"], r"relevance\.reduce='max'.*mean_abs, abs_mean"),
        (["fake_score.target_modules=to_q"], r"fake_score\.target_modules='to_q'"),
        (["data.scale=[a,b]"], r"data\.scale"),
        (["speed.compile=[vae]"], r"speed\.compile.*vae.*generator"),
        (["timesteps.per=epoch"], r"timesteps\.per='epoch'.*batch"),
        (["pullback=both"], r"pullback='both'.*encoder, decoder"),
        (["objective.stride=0", "objective=pds"], r"objective\.stride=0.*at least 1"),
        (["fake_score.loss_weight=snr"], r"fake_score\.loss_weight='snr'"),
        (["steps=0"], r"steps=0.*at least 1"),
        (["generator._target_=os.system"], r"generator\._target_=os\.system: not a target of this place.*SMSFF_ALLOW"),
        (["generator._target_=smsff.generator.unet.UNet"], r"nearest: smsff\.generator\.unet\.UNetGenerator"),
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
        ("regularizer.lamda_freq=2", r"nearest: regularizer\.lambda_freq"),
        ("a=b=[", "a"),
    ],
)
def test_what_hydra_refuses_is_explained_in_one_message(override: str, message: str) -> None:
    with pytest.raises(HydraException) as caught:
        composed(override)
    text = explain(caught.value, config_dir=CONF, config_name="train")
    assert override.partition("=")[0] in text
    assert re.search(message, text)


def test_what_hydra_refuses_is_explained_with_the_keys_of_the_task() -> None:
    words = ["experiment=style_lora", "data.root=x", "lora.rnk=4"]
    with pytest.raises(HydraException) as caught:
        composed(*words)
    assert "nearest: lora.rank" in explain(caught.value, config_dir=CONF, config_name="train", words=words)


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
    node = {"optimizer": {"fake": {"_target_": "smsff.training.optimizer.GroupOptions", "lr": 1.0, "betta": 1}}}
    with pytest.raises(UserError, match=r"optimizer\.fake\.betta.*betas"):
        check_targets(node, "")
    node = {"outer": [{"_target_": "smsff.training.optimizer.GroupOptions", "lr": 1.0}]}
    with pytest.raises(UserError, match=r"outer\.0\._target_=.*nothing is built here"):
        check_targets(node, "")


def test_a_missing_lora_says_where_to_get_it_and_where_to_put_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    plain = composed("style=pixel_art")
    hint = r"weights/3232pixel\.safetensors.*smsff fetch style=pixel_art.*civitai\.com.*31228"
    with pytest.raises(UserError, match=hint):
        check_style_files(plain)
    (tmp_path / "weights").mkdir()
    (tmp_path / plain["style"]["lora"]).touch()
    with pytest.raises(UserError, match=r"weights/anything-v4\.5 does not exist; no source is known.*put it there"):
        check_style_files(plain)
    (tmp_path / plain["style"]["base"]).mkdir()
    check_style_files(plain)
    with pytest.raises(UserError, match=r"mine\.safetensors does not exist; check the path"):
        check_style_files(composed("style=pixel_art", "style.lora=mine.safetensors"))
    several = composed("style=demo_oil", "teacher.lora=[{path:weights/3232pixel.safetensors},{path:x.safetensors}]")
    with pytest.raises(UserError, match=r"teacher\.lora: /.*/x\.safetensors does not exist; check the path"):
        check_style_files(several)


def numbers(node: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, container and index of every number in a configuration."""
    for name in list(node) if isinstance(node, dict) else range(len(node)):
        inside, value = f"{key}.{name}" if key else str(name), node[name]
        if isinstance(value, (dict, list)):
            yield from numbers(value, inside)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield inside, node, name


def test_every_number_has_a_range_of_its_own() -> None:
    seen: set[str] = set()
    for command in (
        (),
        ("experiment=per_image",),
        ("experiment=style_lora", "data.root=x"),
        ("data=folder", "data.root=x", "callbacks=best"),
        ("+generator.widths=[8,8]", "+generator.encoder_blocks=[1,1]", "+generator.decoder_blocks=[1]"),
        ("objective=pds",),
    ):
        plain = composed(*command)
        check_config(plain)
        without = [key for key, _, _ in numbers(plain) if range_of(key) is ANY]
        assert not without, f"{without} have no entry in smsff.config.schema"
        for key, node, name in [one for one in numbers(plain) if one[0] not in seen]:
            before = node[name]
            for wrong in (float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)):
                node[name] = wrong
                with pytest.raises(UserError, match=re.escape(f"{key}=")):
                    check_ranges(plain)
            node[name] = before
            seen.add(key)
        check_ranges(plain)


@pytest.mark.parametrize(
    ("groups", "changes", "message"),
    [
        (
            ["generator=latent"],
            {},
            r"generator=LatentGenerator holds one picture, and .*data=single",
        ),
        (["generator=image", "data=folder", "data.root=x"], {}, r"generator=ImageGenerator.*data=single"),
        (["data=single"], {"trainer.devices": 2}, r"trainer\.devices=2.*one picture"),
        (["data=single"], {"trainer.num_nodes": 2}, r"trainer\.num_nodes=2.*one picture"),
        (["data=single"], {"data.short_side": 4}, r"data\.short_side=4 must be at least data\.multiple=8"),
        ([], {"steps": 7, "trainer.max_steps": 7, "warmup.steps": 7}, r"steps=7 must be more than warmup\.steps=7"),
        ([], {"timesteps.t_min": 400, "timesteps.t_max": 300}, r"timesteps\.t_min=400 is above timesteps\.t_max=300"),
        ([], {"fake_timesteps.t_min": 301, "fake_timesteps.t_max": 300}, r"fake_timesteps\.t_min=301 is above"),
        ([], {"timesteps.grid": "odd", "timesteps.t_min": 20}, r"timesteps\.grid=odd needs odd bounds, not t_min=20"),
        ([], {"optimizer.fake.betas": [0.9]}, r"optimizer\.fake\.betas=\[0\.9\]: must be two numbers"),
        (
            ["experiment=style_lora", "data.root=x", "lora.merged=true"],
            {"lora.gradient_checkpointing": True},
            r"lora\.merged=true with lora\.gradient_checkpointing=true",
        ),
        ([], {"speed.share_draw": True, "fake_draws": 2}, r"speed\.share_draw=true and fake_draws=2"),
        ([], {"timesteps.t_max": 1000}, r"timesteps\.t_max=1000: must be at least 0 and at most 999"),
        ([], {"data.crop_size": 8}, r"data\.crop_size=8 is less than 16, one cell of the generator"),
        ([], {"data.scale": [0.5, 0.2]}, r"data\.scale=\[0\.5, 0\.2\]: must be two numbers"),
        ([], {"data.scale": [0.5]}, r"data\.scale=\[0\.5\]: must be two numbers"),
        ([], {"trainer.strategy": "fsdp"}, r"trainer\.strategy=fsdp: must be one of auto, ddp"),
        ([], {"trainer.strategy": "deepspeed_stage_2"}, r"trainer\.strategy=deepspeed_stage_2"),
        ([], {"steps": 9, "trainer.max_steps": 5}, r"trainer\.max_steps=5 is not steps=9"),
        ([], {"trainer.max_epochs": 3}, r"trainer\.max_epochs=3: must be -1"),
        ([], {"trainer.gradient_clip_val": 1.0}, r"gradient_clip_val=1\.0: must be none: .*clip_norm"),
        ([], {"trainer.use_distributed_sampler": True}, r"use_distributed_sampler=True: must be false"),
        ([], {"trainer.devices": 0}, r"trainer\.devices=0: must be at least 1"),
        ([], {"trainer.precision": "16-mixed"}, r"trainer\.precision=16-mixed: use 32-true"),
        (
            [],
            {"callbacks.summary.path": "/tmp/x.json"},
            r"summary\.path=/tmp/x\.json: must lie in the folder",
        ),
        ([], {"logger.save_dir": ".."}, r"logger\.save_dir=\.\.: must lie in the folder"),
    ],
)
def test_contradictions_are_found_before_weights(groups: list[str], changes: dict[str, Any], message: str) -> None:
    check = OmegaConf.create(chosen(*groups))
    for key, value in changes.items():
        OmegaConf.update(check, key, value)
    with pytest.raises(UserError, match=message):
        check_config(resolve(check))
