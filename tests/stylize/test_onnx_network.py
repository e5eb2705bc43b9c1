"""ONNX files as a stranger could write them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smsff.errors import UserError
from smsff.stylize.onnx_network import load_onnx
from smsff.stylize.stylizer import Stylizer, load_stylizer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

PICTURE = ["batch", 3, "height", "width"]


def model(nodes: list[Any] | None = None, *, weights: dict[str, Any] | None = None, **facts: str) -> Any:
    """Half of the picture, or what the nodes say."""
    given = {"half": np.float32(0.5), **(weights or {})}
    graph = helper.make_graph(
        nodes or [helper.make_node("Mul", ["image", "half"], ["stylized"])],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, PICTURE)],
        [helper.make_tensor_value_info("stylized", TensorProto.FLOAT, PICTURE)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(built, facts)
    return built


def save(path: Path, built: Any) -> Path:
    path.write_bytes(built.SerializeToString())
    return path


def test_a_file_and_a_folder_are_read(tmp_path: Path) -> None:
    path = save(
        tmp_path / "model.onnx", model(multiple="4", receptive_radius="2", training='{"style": {"name": "cel"}}')
    )
    x = torch.rand(1, 3, 37, 50)
    for place in (path, tmp_path):
        stylizer = load_stylizer(place, tile=16)
        assert torch.equal(stylizer(x), x * 0.5)
        assert stylizer.config["training"] == {"style": {"name": "cel"}}
        assert (stylizer.halo, stylizer.multiple) == (2, 4)
    assert load_stylizer(path)(torch.full((1, 3, 5, 4), 255, dtype=torch.uint8)).unique().tolist() == [128]
    with pytest.raises(UserError, match="computed on the CPU"):
        Stylizer(load_onnx(path), device="cuda")


@pytest.mark.parametrize("radius", ["", "None", "-3", "1e9", "99999999999", "²"])
def test_without_a_radius_there_are_no_tiles(tmp_path: Path, radius: str) -> None:
    path = save(tmp_path / "model.onnx", model(receptive_radius=radius, training="{"))
    assert load_stylizer(path).tile == 0
    with pytest.raises(UserError, match="cannot work in tiles"):
        load_stylizer(path, tile=64)


def external(built: Any) -> None:
    tensor = built.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"


def claim(built: Any) -> None:
    built.graph.initializer[0].dims[:] = [10**9, 10**9]


def negative(built: Any) -> None:
    built.graph.initializer[0].dims[:] = [-1]


def not_finite(built: Any) -> None:
    built.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32("nan"), "half"))


def text(built: Any) -> None:
    built.graph.initializer[0].CopyFrom(helper.make_tensor("half", TensorProto.STRING, [1], [b"x"]))


def custom(built: Any) -> None:
    built.graph.node[0].domain = "com.example"
    built.opset_import.append(helper.make_opsetid("com.example", 1))


def function(built: Any) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    built.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))


def loop(built: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "body", [], [])
    built.graph.node.append(helper.make_node("Loop", ["n", "c"], ["y"], body=body))


def hidden(built: Any) -> None:
    tensor = numpy_helper.from_array(np.float32(1), "x")
    tensor.data_location = TensorProto.EXTERNAL
    built.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def nested(built: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    built.graph.node.append(helper.make_node("Identity", ["image"], ["y"], body=body))


def sparse(built: Any) -> None:
    built.graph.sparse_initializer.add()


def many(built: Any) -> None:
    for i in range(10_001):
        built.graph.node.append(helper.make_node("Relu", ["image"], [f"y{i}"]))


def renamed(built: Any) -> None:
    built.graph.input[0].name = "picture"


def doubles(built: Any) -> None:
    built.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "'half' lies in another file"),
        (hidden, "'x' lies in another file"),
        (claim, "but 1 values"),
        (negative, r"shape \[-1\]"),
        (not_finite, "values that are not finite"),
        (text, "number type 8"),
        (custom, r"operations of 'com\.example'"),
        (function, "it has functions"),
        (loop, "operation 'Loop'"),
        (nested, "holds a graph"),
        (sparse, "sparse tensors"),
        (many, "more than 10,000"),
        (renamed, "its input must be one float tensor named image"),
        (doubles, "its output must be one float tensor named stylized"),
    ],
)
def test_what_export_does_not_write_is_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    built = model()
    change(built)
    with pytest.raises(UserError, match=rf"model\.onnx: not a model written by export\.py: .*{message}"):
        load_stylizer(save(tmp_path / "model.onnx", built))


def doubling(times: int) -> list[Any]:
    names = ["image", *(f"c{i}" for i in range(times))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]
    return [*nodes, helper.make_node("ReduceMean", [names[-1]], ["stylized"], keepdims=1)]


@pytest.mark.parametrize(
    "built",
    [
        model(doubling(40)),  # from a kilobyte to 10^13 bytes
        model([helper.make_node("Conv", ["image", "half"], ["stylized"])]),
        model([helper.make_node("Mul", ["image", "nothing"], ["stylized"])]),
        model([helper.make_node("Pad", ["image", "pads"], ["stylized"])], weights={"pads": np.full(8, 10**8)}),
        model([helper.make_node("Concat", ["image", "image"], ["stylized"], axis=1)]),
        model([helper.make_node("Mul", ["image", "big"], ["y"]), helper.make_node("Mul", ["y", "big"], ["stylized"])],
              weights={"big": np.float32(3e38)}),
    ],
    ids=["memory", "rank", "dangling", "padding", "shape", "infinite"],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(tmp_path: Path, built: Any) -> None:
    with pytest.raises(UserError, match=r"model\.onnx: (cannot be run|its result has values|.* would have shape)"):
        load_stylizer(save(tmp_path / "model.onnx", built))


@pytest.mark.parametrize("data", [b"", b"junk", b"\x80\x04" + b"c" * 50, b"\x08\x09" * 10_000])
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.onnx: "):
        load_stylizer(tmp_path)
