"""A network from an ONNX file that may come from a stranger: only the operations that export.py writes are run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smsff.data.images import printable
from smsff.errors import UserError, first_line, shown

ONNX = "model.onnx"
MAX_BYTES = 2**31 - 1
"""The largest file that the format can hold."""
MAX_NODES = 10_000
MAX_RADIUS = 1_000_000
TRIAL = (1, 3, 24, 40)
"""Shape of the picture that a model is tried on."""
MAX_TRIAL_VALUES = 50_000_000
"""No tensor on the way may be larger with this picture: a network of 4096 channels stays below."""

# What both networks export to, and what other versions of the exporter write for the same. No control flow, which could
# run for ever, and nothing that makes a large tensor of a small one by a number in the file.
# fmt: off
OPERATIONS = frozenset(
    {
        "Add", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant", "Conv", "ConvTranspose", "DepthToSpace",
        "DequantizeLinear", "Div", "Floor", "Gather", "Identity", "InstanceNormalization", "Max", "Min", "Mod", "Mul",
        "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMean", "Relu", "Reshape", "Shape", "Slice", "SpaceToDepth",
        "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
    }
)
# fmt: on
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""Bytes of an element by ONNX number type: float, uint8, int8, int32, int64, bool, float16, double."""


class OnnxNetwork(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] to the same, computed by ONNX Runtime on the CPU.

    Attributes:
        receptive_radius: How far in pixels an input can act on the output; None if it is not known.
        multiple: Tiles must start at multiples of this.
        description: What the file says about its training, in the form of config.json.
    """

    def __init__(
        self, session: Any, *, receptive_radius: int | None, multiple: int, description: dict[str, Any]
    ) -> None:
        super().__init__()
        self.session = session
        self.receptive_radius, self.multiple, self.description = receptive_radius, multiple, description

    def forward(self, image: Tensor) -> Tensor:
        """Stylize; RuntimeError if ONNX Runtime fails, for example when it is out of memory."""
        try:
            (result,) = self.session.run(None, {"image": image.contiguous().numpy()})
        except Exception as error:  # its exceptions have no common class but this
            raise RuntimeError(f"ONNX Runtime failed: {first_line(error)[:300]}") from error
        stylized = torch.from_numpy(np.asarray(result))
        if stylized.shape != image.shape or stylized.dtype != image.dtype:
            raise RuntimeError(f"the model makes {tuple(stylized.shape)} of a picture {tuple(image.shape)}")
        return stylized


def load_onnx(path: Path) -> OnnxNetwork:
    """Read, check and try an ONNX file.

    Raises:
        UserError: If packages are missing, or the file is not one that `export.py` writes.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"{printable(path)}: ONNX models need {', '.join(missing)}: pip install 'smsff[export]'")
    import onnx
    import onnxruntime

    source = printable(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{source}: more than {MAX_BYTES:,} bytes, no ONNX file")
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error}") from error
    except UserError:
        raise
    except Exception as error:  # protobuf's own, which it has several names for
        raise UserError(f"{source}: cannot be read as ONNX: {first_line(error)[:300]}") from error
    try:
        _check_model(model)
        _check_growth(model)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        training: Any = {}
        with suppress(ValueError, RecursionError):
            training = json.loads(facts.get("training", "{}"))
        network = OnnxNetwork(
            onnxruntime.InferenceSession(data, _options(), providers=["CPUExecutionProvider"]),
            receptive_radius=_number(facts, "receptive_radius"),
            multiple=_number(facts, "multiple") or 1,
            description={"smsff_version": facts.get("smsff_version"), "training": training},
        )
        tried = network(torch.full(TRIAL, 0.5))
    except UserError as error:
        raise UserError(f"{source}: not a model written by export.py: {error}") from error
    except Exception as error:  # as above
        raise UserError(f"{source}: cannot be run: {first_line(error)[:300]}") from error
    if not bool(torch.isfinite(tried).all()):
        raise UserError(f"{source}: its result has values that are not finite; the model is damaged")
    return network


@cache
def _options() -> Any:
    """Options of a session whose memory is limited to half of the machine's."""
    import onnxruntime

    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg({"max_mem": limit, "arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, arena)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4
    return options


def _check_model(model: Any) -> None:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise UserError("it has functions, training information or sparse tensors")
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in graph.node}
    if strange := sorted(domains - {"", "ai.onnx"}):
        raise UserError(f"it has operations of {shown(strange[0])}; only those of ONNX itself are run")
    if len(graph.node) > MAX_NODES:
        raise UserError(f"it has {len(graph.node):,} operations, more than {MAX_NODES:,}")
    for node in graph.node:
        if node.op_type not in OPERATIONS:
            raise UserError(f"it has the operation {shown(node.op_type)}, which neither network needs")
    for tensor in _tensors(graph):
        _check_tensor(tensor)
    for kind, values, name in (("input", graph.input, "image"), ("output", graph.output, "stylized")):
        if [value.name for value in values] != [name] or values[0].type.tensor_type.elem_type != 1:
            raise UserError(f"its {kind} must be one float tensor named {name}")


def _check_growth(model: Any) -> None:
    """Refuse a graph that makes very large tensors of a small picture, as far as its shapes can be inferred.

    Where they cannot, the limit of the session's memory holds.
    """
    from onnx import shape_inference

    fixed = type(model)()
    fixed.CopyFrom(model)
    for side, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, TRIAL, strict=True):
        side.dim_value = size
    del fixed.graph.value_info[:]
    for value in shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info:
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if math.prod(sides) > MAX_TRIAL_VALUES:
            raise UserError(f"its tensor {shown(value.name)} would have shape {sides} for a picture of {TRIAL[2:]}")


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor in the file: the weights, and constants among the attributes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise UserError(f"its operation {shown(node.op_type)} holds a graph or a sparse tensor")
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: Any) -> None:
    """The bytes that are there must be those that the shape asks for, and numbers."""
    from onnx import numpy_helper

    name = shown(tensor.name)
    if tensor.data_location != 0 or tensor.external_data:
        raise UserError(f"its tensor {name} lies in another file")
    if tensor.data_type not in ITEM_BYTES:
        raise UserError(f"its tensor {name} has number type {tensor.data_type}, which is not used here")
    if any(side < 0 for side in tensor.dims):
        raise UserError(f"its tensor {name} has shape {shown(list(tensor.dims))}")
    count = math.prod(tensor.dims)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)
    there = len(tensor.raw_data) // ITEM_BYTES[tensor.data_type] if tensor.raw_data else max(map(len, fields))
    if there != count:
        raise UserError(f"its tensor {name} has shape {shown(list(tensor.dims))} but {there:,} values")
    if not np.isfinite(numpy_helper.to_array(tensor)).all():
        raise UserError(f"its tensor {name} has values that are not finite")


def _number(facts: dict[str, str], key: str) -> int | None:
    text = facts.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 and 0 < int(text) <= MAX_RADIUS else None
