"""The network as one ONNX file for pictures of any size, checked against PyTorch."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from smsff import __version__
from smsff.atomic import write_atomically
from smsff.errors import UserError
from smsff.stylize.model_files import Network
from smsff.stylize.onnx_precision import CALIBRATION_SIDE, LEAST_PSNR, Precision, photos, psnr, to_float16, to_int8
from smsff.stylize.stylizer import to_unit_range

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
    """How far an ONNX file is from PyTorch in float32.

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
        UserError: If a package of the extra is missing, or there is no such precision.
        RuntimeError: If ONNX Runtime differs from PyTorch by more than `TOLERANCE` in float32, or by more than
            `LEAST_PSNR` allows in 16 or 8 bits; nothing is written then.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision={precision} is not one of {', '.join(get_args(Precision))}")
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


def compare(model: nn.Module, path: Path) -> dict[tuple[int, int], float]:
    """Largest difference between ONNX Runtime and PyTorch on random pictures, two at a time, of each of `SIZES`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    draw = torch.Generator().manual_seed(0)
    parity = {}
    for size in SIZES:
        x = torch.rand(2, 3, *size, generator=draw)
        (result,) = session.run(None, {"image": x.numpy()})
        with torch.inference_mode():
            parity[size] = float((torch.from_numpy(result) - model(x)).abs().max())
    return parity
