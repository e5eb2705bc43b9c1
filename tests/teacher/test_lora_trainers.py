"""LoRA files as trainers really write them, broken ones too: each loads rightly, or is refused or named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import (
    TEXT_LAYERS,
    file_tensors,
    kohya,
    load_style_lora,
    merge,
    merged_weights,
    reference_delta,
    run_unet,
    sd_models,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.lora.inspect import inspect_lora
from smsff.teacher.lora.load import LoraReport
from smsff.teacher.stable_diffusion import load_stable_diffusion

LAYER = "down_blocks.1.attentions.0.proj_in"
FLAT = LAYER.replace(".", "_")
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def one_layer(algorithm: str = "lora") -> dict[str, Tensor]:
    """The tensors of one layer, whose names end so: rank 3, alpha 2."""
    return file_tensors(sd_models()[0], algorithm, ("attentions.0.proj_in",))[LAYER]


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    named = {f"lora_unet_{FLAT}.{end}": tensor.contiguous() for end, tensor in tensors.items()}
    save_file(named, path, metadata=metadata)
    return path


def load(path: Path, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> tuple[nn.Module, LoraReport]:
    unet, text = sd_models()
    unet.to(dtype)
    return unet, load_style_lora(unet, text, path, strength=strength)


@pytest.mark.parametrize(
    ("algorithm", "adapter"),
    [("lora", name) for name in ("default_0", "my-style", "v1.0", "pixel art", "a.weight", "画")]
    + [(algorithm, "my v1.0-x") for algorithm in ("dora", "loha", "lokr")],
)
def test_any_name_of_an_adapter(tmp_path: Path, adapter: str, algorithm: str) -> None:
    unet, _ = sd_models()
    layers = file_tensors(unet, algorithm)
    ends = {DOWN: "lora_A.{}.weight", UP: "lora_B.{}.weight", "dora_scale": "lora_magnitude_vector.{}.weight"}
    named = {}
    for name, tensors in layers.items():
        for end, tensor in tensors.items():
            key = "alpha" if end == ALPHA else ends.get(end, end + ".{}").format(adapter)
            named[f"base_model.model.{name}.{key}"] = tensor.flatten() if end == "dora_scale" else tensor
    save_file(named, tmp_path / "l.safetensors")
    report = load_style_lora(unet, None, tmp_path / "l.safetensors")
    assert report.matched == report.total
    merged = sd_models()[0]
    merge(merged, layers, 1.0)
    torch.testing.assert_close(run_unet(unet), run_unet(merged), atol=1e-5, rtol=0)


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = one_layer()
    ends = {f"lora_{side}.{name}.weight": tensors[end].clone()
            for side, end in (("A", DOWN), ("B", UP)) for name in ("ink", "oil")}  # fmt: skip
    save_file({f"base_model.model.{LAYER}.{end}": t for end, t in ends.items()}, tmp_path / "l.safetensors")
    with pytest.raises(UserError, match=r"lora_A\.ink\.weight and .*lora_A\.oil\.weight are for the same layer"):
        inspect_lora(tmp_path / "l.safetensors")


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".SafeTensors"])
def test_the_suffix_in_capitals(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"l{suffix}", one_layer())
    for where in (path, tmp_path):
        assert load(where)[1].matched == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr", "lokr full"])
def test_a_value_that_is_not_finite_is_refused_with_file_and_layer(
    tmp_path: Path, algorithm: str, value: float
) -> None:
    good = one_layer(algorithm)
    for end in good:
        tensors = {key: tensor.clone() for key, tensor in good.items()}
        tensors[end].view(-1)[-1] = value
        path = write(tmp_path / "bad.safetensors", tensors)
        with pytest.raises(UserError, match=rf"teacher\.lora=.*bad\.safetensors: .*{FLAT}\.{end} is not finite"):
            load(path)


@pytest.mark.parametrize("algorithm", ["lora", "loha"])
def test_values_that_are_too_large_for_the_model(tmp_path: Path, algorithm: str) -> None:
    path = write(tmp_path / "l.safetensors", {key: tensor * 1e6 for key, tensor in one_layer(algorithm).items()})
    with pytest.raises(UserError, match=rf"l\.safetensors: {FLAT} is not finite in torch\.float16"):
        load(path, torch.float16)


def nothing(kind: str) -> tuple[dict[str, Tensor], torch.dtype]:
    """The tensors of a LoRA that changes nothing, and the dtype of a model in which that is so."""
    tensors = one_layer("dora" if kind == "untrained DoRA" else "loha" if "LoHa" in kind else "lora")
    if kind.startswith("alpha 0"):
        tensors[ALPHA] = torch.tensor(0.0)
    elif kind == "LoHa of zeros":
        tensors["hada_w2_a"].zero_()
    elif kind in ("up of zeros", "untrained DoRA"):
        tensors[UP].zero_()
        norm = sd_models()[0].get_submodule(LAYER).weight.flatten(1).norm(dim=1)
        tensors |= {"dora_scale": norm.reshape(-1, 1, 1, 1).detach()} if kind == "untrained DoRA" else {}
    elif kind == "underflow in float32":
        tensors |= {end: tensors[end] * 1e-25 for end in (DOWN, UP)}
    elif kind == "stored in float16":
        tensors = {end: (tensor * 1e-9).half() if end == UP else tensor for end, tensor in tensors.items()}
    else:
        tensors |= {end: tensors[end] * 1e-5 for end in (DOWN, UP)}
        return tensors, torch.float16
    return tensors, torch.float32


@pytest.mark.parametrize(
    "kind",
    [
        *("alpha 0", "alpha 0, LoHa", "up of zeros", "LoHa of zeros", "untrained DoRA"),
        *("underflow in float32", "stored in float16", "underflow in float16"),
    ],
)
def test_a_lora_that_changes_nothing_is_said_to(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tensors, dtype = nothing(kind)
    path = write(tmp_path / "l.safetensors", tensors)
    with caplog.at_level(logging.WARNING):
        _, report = load(path, dtype)
    assert report.unchanged == ("unet",)
    assert "changes nothing in unet" in str(report)
    assert caplog.text.count("changes nothing in unet") == 1
    assert str(path) in caplog.text


def test_what_changes_something_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for algorithm in ("lora", "dora", "loha", "lokr"):
        for strength in (1.0, 0.0, -0.3):  # 0 is what the user wants
            path = write(tmp_path / "l.safetensors", one_layer(algorithm))
            assert load(path, strength=strength)[1].unchanged == ()
    assert "changes nothing" not in caplog.text


PEFT = "lora_adapter_metadata"


@pytest.mark.parametrize(
    ("metadata", "alpha"),
    [
        ({}, 3),  # the rank
        ({"lora_alpha": "6"}, 6),
        ({"network_alpha": "6.0"}, 6),
        ({"alpha": "6"}, 6),
        ({"alpha": "5", "lora_alpha": "6"}, 6),
        ({"unet.lora_alpha": "6"}, 6),
        ({"unet.alpha": "6", "lora_alpha": "5"}, 6),
        ({"lora_alpha": "6", "use_rslora": "True"}, 6 * 3**0.5),
        ({"lora_alpha": "5", "alpha_pattern": json.dumps({"proj_in": 6})}, 6),
        ({PEFT: json.dumps({"unet.lora_alpha": 6, "lora_alpha": 5})}, 6),
        ({PEFT: json.dumps({"unet": {"lora_alpha": 6}})}, 6),
        ({PEFT: json.dumps({"unet.lora_alpha": "6"}), "lora_alpha": "5"}, 6),
        ({PEFT: json.dumps({"unet.r": 3}), "lora_alpha": "6"}, 6),
    ],
)
def test_an_alpha_in_the_header(tmp_path: Path, metadata: dict[str, str], alpha: float) -> None:
    tensors = one_layer()
    own = tensors.pop(ALPHA)
    unet, report = load(write(tmp_path / "l.safetensors", tensors, metadata))
    assert report.alphas == pytest.approx((alpha,))
    assert report.info.unusable == ()
    weight = sd_models()[0].get_submodule(LAYER).weight
    wanted = weight.double() + reference_delta(tensors, weight, alpha / 2)  # the reference has alpha 2
    torch.testing.assert_close(merged_weights(unet)[LAYER], wanted, atol=1e-6, rtol=1e-6)
    if metadata:  # what a layer says itself counts first
        assert load(write(tmp_path / "l.safetensors", tensors | {ALPHA: own}, metadata))[1].alphas == (2,)


@pytest.mark.parametrize(
    "name", ["transformer.lora_alpha", "text_encoder.lora_alpha", "ss_network_alpha", "conv_alpha", "unet.x.alpha"]
)
def test_an_alpha_that_cannot_be_applied_is_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tensors = one_layer()
    own = tensors.pop(ALPHA)
    path = write(tmp_path / "l.safetensors", tensors, {name: "8"})
    report = load(path)[1]
    assert (report.alphas, report.info.unusable, inspect_lora(path).unusable) == ((3,), (name,), (name,))
    assert f"cannot be applied: {name}" in caplog.text
    assert load(write(path, tensors | {ALPHA: own}, {name: "8"}))[1].info.unusable == ()


WRONG: dict[str, Any] = {
    "null": None,
    "list": [],
    "text": "x",
    "empty text": "",
    "yes": True,
    "negative zero": -0.0,
    "mapping": {},
    "nested": {"a": {"b": [None]}},
    "list of null": [None],
    "mapping of null": {"to_q": None},
    "mapping of texts": {"proj_in": "x"},
    "broken pattern": {"(": 2},
}
FIELDS = ("r", "lora_alpha", "alpha", "network_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


@pytest.mark.parametrize("kind", WRONG)
def test_settings_of_the_wrong_type(tmp_path: Path, kind: str) -> None:
    """In a header, in its JSON, in that of a part, and in peft's file beside: no traceback, and nothing guessed."""
    tensors, value = one_layer(), WRONG[kind]
    del tensors[ALPHA]
    headers = [{PEFT: json.dumps(value)}, {PEFT: json.dumps({"unet": value})}, {"unet": json.dumps(value)}]
    for field in FIELDS:
        headers += [{PEFT: json.dumps({f"unet.{field}": value, "lora_alpha": 6})}, {PEFT: json.dumps({field: value})}]
        headers += [{field: json.dumps(value), "unet.lora_alpha": "6"}]
    unet = sd_models()[0]
    for i, header in enumerate(headers):
        path = write(tmp_path / "l.safetensors", tensors, header)
        report = load_style_lora(unet, None, path, adapter_name=f"a{i}")
        assert report.matched == 2
        # The rank, what is said elsewhere, or the value where it is one; all times sqrt(rank) if that is said.
        assert min(abs(report.alphas[0] - a * r) for a in (0, 3, 6) for r in (1, 3**0.5)) < 1e-9
    peft = {f"base_model.model.{LAYER}.lora_{s}.weight": tensors[end] for s, end in (("A", DOWN), ("B", UP))}
    save_file(peft, tmp_path / "l.safetensors")
    for i, content in enumerate((value, *({field: value} for field in FIELDS))):
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        assert load_style_lora(unet, None, tmp_path / "l.safetensors", adapter_name=f"b{i}").matched == 2


@pytest.mark.parametrize("text", ["{bad", "[" * 100_000, '"x"', "7", "[]7", "9" * 5000])
def test_a_header_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    tensors = one_layer()
    del tensors[ALPHA]
    report = load(write(tmp_path / "l.safetensors", tensors, {PEFT: text, "lora_alpha": "6"}))[1]
    assert (report.info.unusable, report.alphas) == ((PEFT,), (6,))


@pytest.mark.parametrize("header", [{"lora_alpha": "nan"}, {"unet.alpha": "1e999"}, {PEFT: '{"lora_alpha": Infinity}'}])
def test_an_alpha_in_the_header_that_is_not_finite(tmp_path: Path, header: dict[str, str]) -> None:
    tensors = one_layer()
    del tensors[ALPHA]
    with pytest.raises(UserError, match=r"l\.safetensors: its .*alpha .* not finite"):
        inspect_lora(write(tmp_path / "l.safetensors", tensors, header))


@pytest.mark.parametrize(
    ("end", "tensor"),
    [
        (DOWN, torch.zeros(())),
        (DOWN, torch.zeros(4)),
        (DOWN, torch.zeros(0, 32, 1, 1)),
        (DOWN, torch.zeros(3, 32, 1, 1, dtype=torch.complex64)),
        (UP, torch.zeros(32, 3, 1, 1, dtype=torch.int8)),
        (ALPHA, torch.zeros(2)),
        (ALPHA, torch.zeros(0)),
    ],
)
def test_shapes_and_types_that_no_lora_has(tmp_path: Path, end: str, tensor: Tensor) -> None:
    path = write(tmp_path / "l.safetensors", one_layer() | {end: tensor})
    with pytest.raises(UserError, match=rf"l\.safetensors: no LoRA has .*{FLAT}\.{end} of shape"):
        inspect_lora(path)


def test_a_lora_for_the_text_encoder_alone(tmp_path: Path, tiny_base: Path) -> None:
    unet, text = sd_models()
    path = tmp_path / "l.safetensors"
    save_file(kohya(file_tensors(text, "lora", TEXT_LAYERS), "lora_te_text_model_"), path)
    with pytest.raises(UserError, match="a LoRA for the text encoder alone"):
        load_style_lora(unet, text, path)
    with pytest.raises(UserError, match="a LoRA for the text encoder alone"):
        load_stable_diffusion(base=str(tiny_base), lora=str(path))
