"""The network as one ONNX file for pictures of any size, checked against PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smsff import __version__
from smsff.errors import UserError
from smsff.stylize.files import write_atomically
from smsff.stylize.stylizer import to_unit_range

SIZES = ((256, 256), (192, 320), (101, 75))
TOLERANCE = 1e-4


class _UnitRange(nn.Module):
    """RGB in [0, 1] to RGB in [0, 1]: what other programs expect of a picture."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor) -> Tensor:
        return to_unit_range(self.generator, image)


def export_onnx(
    generator: nn.Module, path: str | Path, meta: Mapping[str, Any] | None = None
) -> dict[tuple[int, int], float]:
    """Write model.onnx: input "image", output "stylized", both (batch, 3, height, width) RGB in [0, 1], any size.

    The range and `meta` stand in the file's metadata. The file is compared with PyTorch at `SIZES`.

    Returns:
        Largest difference for each (H, W).

    Raises:
        UserError: If a package of the extra is missing.
        RuntimeError: If ONNX Runtime differs from PyTorch by more than `TOLERANCE`; nothing is written then.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'smsff[export]'")
    path = Path(path)
    model = _UnitRange(generator).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    parity: dict[tuple[int, int], float] = {}

    def write(temporary: Path) -> None:
        _convert(model, temporary, meta or {})
        parity.update(compare(model, temporary))
        if max(parity.values()) > TOLERANCE:
            raise RuntimeError(
                f"ONNX Runtime differs from PyTorch by {max(parity.values()):.1e}, more than {TOLERANCE}"
            )

    write_atomically(path, write)
    return parity


def _convert(model: nn.Module, path: Path, meta: Mapping[str, Any]) -> None:
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
