"""The network as one ONNX file for pictures of any size, checked against PyTorch, in 32, 16 or 8 bits.

float16 halves the file; CPUs compute it no faster. int8 quarters it and is about twice as fast on CPUs with 8-bit
products: weights by channel, activations by ranges that are found on photos (the bundled ones that training sees).
Only the convolutions are quantised; the normalisations between them stay in float32 (their mean over channels is a
convolution too, the only kind with one output).
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from smsff import __version__
from smsff.atomic import write_atomically
from smsff.data.crops import shrink_to
from smsff.data.folder import BUNDLED
from smsff.data.images import find_images, load_image
from smsff.errors import UserError
from smsff.stylize.model_files import Network
from smsff.stylize.stylizer import to_unit_range

Precision = Literal["float32", "float16", "int8"]

CALIBRATION_SIDE = 384
"""Longest side in pixels of the photos on which the ranges of activations are found."""
LEAST_PSNR = {"float16": 50.0, "int8": 25.0}
"""Decibels below which the conversion has failed and no file is written."""
SIZES = ((256, 256), (192, 320), (101, 75))
TOLERANCE = 1e-4


class _UnitRange(nn.Module):
    """RGB in [0, 1] to RGB in [0, 1]: what other programs expect of a picture."""

    def __init__(self, generator: Network) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor) -> Tensor:
        return to_unit_range(self.generator, image)


@dataclass(frozen=True)
class Agreement:
    """How far an exported file is from the network in float32.

    Attributes:
        parity: Largest difference on random pictures for each (H, W); RGB in [0, 1].
        psnr: Decibels on the bundled test photos by name; only for 16 and 8 bits.
    """

    parity: dict[tuple[int, int], float]
    psnr: dict[str, float] = field(default_factory=dict)


def export_onnx(
    generator: Network, path: str | Path, meta: Mapping[str, Any] | None = None, *, precision: Precision = "float32"
) -> Agreement:
    """Write model.onnx: input "image", output "stylized", both (batch, 3, height, width) RGB in [0, 1], any size.

    The range and `meta` stand in the file's metadata. The file is compared with PyTorch at `SIZES`, and in 16 or 8 bits
    on photos as well.

    Raises:
        UserError: If a package of the extra is missing.
        RuntimeError: If ONNX Runtime differs from PyTorch by more than `TOLERANCE` in float32, or by more than
            `LEAST_PSNR` allows in 16 or 8 bits; nothing is written then.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'smsff[export]'")
    path = Path(path)
    model = _UnitRange(generator).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Agreement] = []

    def write(temporary: Path) -> None:
        convert(generator, temporary, {**(meta or {}), "precision": precision})
        parity = compare(model, temporary)
        if max(parity.values()) > TOLERANCE:
            raise RuntimeError(
                f"ONNX Runtime differs from PyTorch by {max(parity.values()):.1e}, more than {TOLERANCE}"
            )
        found.append(Agreement(parity) if precision == "float32" else _lower(model, temporary, precision))

    write_atomically(path, write)
    return found[0]


def _lower(model: nn.Module, path: Path, precision: Precision) -> Agreement:
    """Replace a file in float32 by one in 16 or 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        lowered = Path(folder) / "lowered.onnx"
        if precision == "float16":
            to_float16(path, lowered)
        else:
            to_int8(path, lowered, list(photos("train", side=CALIBRATION_SIDE).values()))
        path.write_bytes(lowered.read_bytes())
    quality = psnr(model, path, photos("test", side=512))
    if min(quality.values()) < LEAST_PSNR[precision]:
        raise RuntimeError(
            f"{precision} is {min(quality.values()):.1f} dB from float32 on a photo, less than {LEAST_PSNR[precision]}"
        )
    return Agreement(compare(model, path), quality)


def convert(generator: Network, path: Path, meta: Mapping[str, Any]) -> None:
    """Write the network as ONNX, unchecked; its facts and `meta` go into the metadata."""
    model = _UnitRange(generator).eval()
    axes = {0: "batch", 2: "height", 3: "width"}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            program = torch.onnx.export(
                model,
                (torch.rand(2, 3, 72, 90),),
                dynamo=True,
                dynamic_shapes=(axes,),
                input_names=["image"],
                output_names=["stylized"],
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert program is not None
    program.model.metadata_props.update(
        {
            "smsff_version": __version__,
            "image": "RGB in [0, 1], (batch, 3, height, width), any size",
            "stylized": "RGB in [0, 1], same shape",
            "multiple": str(generator.multiple),
            "receptive_radius": str(generator.receptive_radius),
            "training": json.dumps(dict(meta), ensure_ascii=False),
        }
    )
    program.save(str(path), external_data=False)


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


def run_onnx(path: Path, pictures: Sequence[Tensor]) -> list[Tensor]:
    """The results of an ONNX file for pictures (B, 3, H, W) in [0, 1], by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(session.run(None, {"image": x.numpy()})[0])) for x in pictures]


@torch.inference_mode()
def compare(model: nn.Module, path: Path) -> dict[tuple[int, int], float]:
    """Largest difference between ONNX Runtime and PyTorch on random pictures, two at a time, of each of `SIZES`."""
    draw = torch.Generator().manual_seed(0)
    pictures = [torch.rand(2, 3, *size, generator=draw) for size in SIZES]
    results = run_onnx(path, pictures)
    differences = [float((y - model(x)).abs().max()) for x, y in zip(pictures, results, strict=True)]
    return dict(zip(SIZES, differences, strict=True))


@torch.inference_mode()
def psnr(model: nn.Module, path: Path, pictures: dict[str, Tensor]) -> dict[str, float]:
    """Decibels between an ONNX file and the network in float32 on each picture; RGB in [0, 1], the peak is 1."""
    results = run_onnx(path, list(pictures.values()))
    errors = [(y - model(x)).square().mean() for x, y in zip(pictures.values(), results, strict=True)]
    return {name: float(-10 * error.log10()) for name, error in zip(pictures, errors, strict=True)}
