"""Model folders and LoRA files: damaged ones, and such that say what is not so."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_edits import byte_edits, edit_bytes, edit_safetensors, edit_tree, texts, tree_edits, values
from hypothesis import strategies as st
from safetensors.torch import load, save

UNET = {"widths": [4, 6], "encoder_blocks": [1, 1], "decoder_blocks": [1], "head_width": 4}
RESNET = {"width": 2, "blocks": 1}
GOOD = (("UNetGenerator", UNET), ("ResNetGenerator", RESNET))

few = st.one_of(st.just([]), st.lists(byte_edits, max_size=3))
trees = st.one_of(st.just([]), st.lists(tree_edits, max_size=3))
fields = st.tuples(st.integers(0, 2**16), st.sampled_from((0, 1, -1, 2, 3, 2**31, 2**62)))
model_cases = st.one_of(
    st.tuples(st.just("folder"), st.integers(0, 1), trees, trees, few),
    st.tuples(st.just("config bytes"), st.integers(0, 1), few),
    st.tuples(st.just("onnx bytes"), st.lists(byte_edits, min_size=1, max_size=4)),
    st.tuples(st.just("onnx fields"), st.lists(fields, min_size=1, max_size=4)),
)
lora_cases = st.tuples(
    st.integers(0, 3),
    trees,
    few,
    st.booleans(),
    st.sampled_from((None, None, None, 0.0, float("nan"), float("inf"), -float("inf"), 3e38)),
)

# Settings of a LoRA beside its tensors: of the wrong type, in the header itself or in JSON in it.
lora_fields = st.builds(
    str.__add__,
    st.sampled_from(("", "", "unet.", "text_encoder.", "transformer.", "unet.conv_in.")),
    st.sampled_from(("r", "lora_alpha", "alpha", "network_alpha", "rank_pattern", "alpha_pattern", "use_rslora")),
)
lora_settings = st.one_of(
    values,
    st.dictionaries(lora_fields, st.one_of(values, st.dictionaries(texts, values, max_size=3)), max_size=4),
    st.dictionaries(st.sampled_from(("unet", "text_encoder")), st.dictionaries(lora_fields, values), max_size=2),
)
lora_header_cases = st.tuples(
    st.integers(0, 3),
    st.dictionaries(
        st.one_of(st.sampled_from(("lora_adapter_metadata", "unet", "ss_network_alpha")), lora_fields),
        st.tuples(lora_settings, st.integers(0, 2)),
        min_size=1,
        max_size=3,
    ),
)


@cache
def model_files(which: int) -> tuple[dict[str, Any], bytes]:
    from smsff.stylize.model_files import NETWORKS

    name, arguments = GOOD[which]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(which)
        state = NETWORKS[name](**arguments).state_dict()
    return {"generator": {"name": name, "config": arguments}, "training": {"style": {"name": "x"}}}, save(state)


@cache
def onnx_model() -> Any:
    """Three operations with attributes, weights and a shape, in the form that export.py writes."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "w": np.full((3, 3, 3, 3), 0.01, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "two": np.float32(2),
    }
    picture = ["b", 3, "h", "w"]
    nodes = [
        helper.make_node("Pad", ["image", "pads"], ["a"], mode="edge"),
        helper.make_node("Conv", ["a", "w"], ["c"], kernel_shape=[3, 3], strides=[1, 1]),
        helper.make_node("Div", ["c", "two"], ["stylized"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, picture)],
        [helper.make_tensor_value_info("stylized", TensorProto.FLOAT, picture)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"receptive_radius": "1", "multiple": "1", "training": "{}"})
    return model


def number_fields(message: Any) -> list[tuple[Any, Any, int | None]]:
    """Every whole number in a protobuf message: (message, field, index in it)."""
    found: list[tuple[Any, Any, int | None]] = []
    for field, value in message.ListFields():
        several = field.is_repeated
        if field.message_type is not None:
            for part in value if several else [value]:
                found += number_fields(part)
        elif field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64):
            found += [(message, field, i) for i in range(len(value))] if several else [(message, field, None)]
    return found


def edit_onnx(edits: list[Any]) -> bytes:
    model = copy.deepcopy(onnx_model())
    fields = number_fields(model)
    for at, value in edits:
        message, field, index = fields[at % len(fields)]
        number = value if field.cpp_type == field.CPPTYPE_INT64 else min(value, 2**31 - 1)
        if index is None:
            setattr(message, field.name, number)
        else:
            getattr(message, field.name)[index] = number
    return bytes(model.SerializeToString())


def run_model(case: Any, folder: Path) -> None:
    """Load the folder and stylize a small picture."""
    from smsff.errors import UserError
    from smsff.stylize.stylizer import load_stylizer

    kind, *rest = case
    model = folder / "in"
    model.mkdir()
    if kind.startswith("onnx"):
        data = edit_bytes(onnx_model().SerializeToString(), rest[0]) if kind == "onnx bytes" else edit_onnx(rest[0])
        (model / "model.onnx").write_bytes(data)
    else:
        config, weights = model_files(rest[0])
        text = json.dumps(config)
        if kind == "folder":
            text = json.dumps(edit_tree(config, rest[1]), skipkeys=True)
            weights = edit_bytes(edit_safetensors(weights, rest[2], honest=True) if rest[2] else weights, rest[3])
        (model / "model.safetensors").write_bytes(weights)
        data = text.encode("utf-8", "surrogatepass")
        (model / "config.json").write_bytes(edit_bytes(data, rest[1]) if kind == "config bytes" else data)
    stylizer = load_stylizer(model)
    picture = torch.zeros(1, 3, 9, 11, dtype=torch.uint8)
    try:
        result = stylizer(picture)
    except RuntimeError as error:  # what `smsff stylize` names and goes on after
        raise UserError(str(error)) from error
    assert result.shape == picture.shape


@cache
def lora_models() -> tuple[Any, Any]:
    from lora_files import sd_models

    return sd_models()


@cache
def lora_file(which: int) -> bytes:
    """A small LoRA file in one of four algorithms, kohya's names."""
    from lora_files import LAYERS, TEXT_LAYERS, loha, lokr, lora, tucker

    make = (lora, tucker, loha, lokr(left=False, right=True))[which]
    generator = torch.Generator().manual_seed(which)
    tensors = {}
    for model, prefix, ends in zip(lora_models(), ("lora_unet_", "lora_te_"), (LAYERS, TEXT_LAYERS), strict=True):
        names = [name for name, _ in model.named_modules() if name.endswith(ends)][:4]
        for name in names:
            name_in_file = prefix + ("text_model_" if prefix == "lora_te_" else "") + name.replace(".", "_")
            weight = model.get_submodule(name).weight
            tensors |= {f"{name_in_file}.{key}": value for key, value in make(weight, generator).items()}
    return save({name: value.contiguous() for name, value in tensors.items()}, {"ss_network_dim": "3"})


def run_lora(case: Any, folder: Path) -> None:
    """Load the file into copies of small models, and ask the U-Net for a prediction."""
    from lora_files import load_style_lora, run_unet

    which, header, edits, honest, value = case
    data = lora_file(which)
    if value is not None:
        numbers = np.frombuffer(data[-64:], np.float32).copy()
        numbers[3] = value
        data = data[:-64] + numbers.tobytes()
    data = edit_safetensors(data, header, honest=honest) if header else data
    path = folder / "style.safetensors"
    path.write_bytes(edit_bytes(data, edits))
    unet, text = copy.deepcopy(lora_models())
    load_style_lora(unet, text, path)
    assert run_unet(unet).shape[0] == 2


def run_lora_header(case: Any, folder: Path) -> None:
    """Load a file whose layers have no alpha, with such a header, into a copy of the U-Net."""
    from lora_files import load_style_lora

    which, settings = case
    metadata = {}
    for name, (value, depth) in settings.items():
        text = value if isinstance(value, str) and depth == 0 else json.dumps(value, skipkeys=True)
        for _ in range(depth - 1):  # JSON in a string of JSON
            text = json.dumps(text)
        metadata[name] = text.encode("utf-8", "replace").decode()
    tensors = {name: value for name, value in load(lora_file(which)).items() if not name.endswith(".alpha")}
    path = folder / "style.safetensors"
    path.write_bytes(save(tensors, metadata))
    report = load_style_lora(copy.deepcopy(lora_models()[0]), None, path)
    assert all(abs(alpha) < float("inf") for alpha in report.alphas)
