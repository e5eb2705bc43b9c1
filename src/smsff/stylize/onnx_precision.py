"""ONNX files in 16 and in 8 bits, and what they lose.

float16 halves the file; CPUs compute it no faster. int8 quarters it and is about twice as fast on CPUs with 8-bit
products: weights by channel, activations by ranges that are found on photos (the bundled ones that training sees).
Only the convolutions are quantised; the normalisations between them stay in float32 (their mean over channels is a
convolution too, the only kind with one output).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from smsff.data.crops import shrink_to
from smsff.data.folder import BUNDLED
from smsff.data.images import find_images, load_image

Precision = Literal["float32", "float16", "int8"]

CALIBRATION_SIDE = 384
"""Longest side in pixels of the photos on which the ranges of activations are found."""
LEAST_PSNR = {"float16": 50.0, "int8": 25.0}
"""Decibels below which the conversion has failed and no file is written."""


def photos(part: str, *, side: int) -> dict[str, Tensor]:
    """Bundled photos by name, (1, 3, H, W) in [0, 1]; ``part`` is train, val or test."""
    files = find_images(BUNDLED / part)
    return {path.name: shrink_to(load_image(path), side)[None].float() / 255 for path in files}


def to_float16(source: Path, target: Path) -> None:
    """Weights and arithmetic in float16; input and output stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save_model(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))


def to_int8(source: Path, target: Path, pictures: Sequence[Tensor]) -> None:
    """Convolutions in 8 bits, their ranges found on `pictures` (1, 3, H, W) in [0, 1]."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.left, None)
            return None if picture is None else {"image": picture.numpy()}

    graph = onnx.load(str(source)).graph
    single = {weight.name for weight in graph.initializer if len(weight.dims) == 4 and weight.dims[0] == 1}
    means = [node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in single]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # advice to process the model beforehand, which does not help here
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=means,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
    model, before = onnx.load(str(target)), onnx.load(str(source))
    kept = {entry.key for entry in model.metadata_props}
    model.metadata_props.extend(entry for entry in before.metadata_props if entry.key not in kept)
    onnx.save_model(model, str(target))


def psnr(model: nn.Module, path: Path, pictures: dict[str, Tensor]) -> dict[str, float]:
    """Decibels between an ONNX file and the network in float32 on each picture; RGB in [0, 1], the peak is 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = {}
    for name, picture in pictures.items():
        (result,) = session.run(None, {"image": picture.numpy()})
        with torch.inference_mode():
            error = float((torch.from_numpy(np.asarray(result)) - model(picture)).square().mean())
        found[name] = float("inf") if error == 0 else -10 * float(np.log10(error))
    return found
