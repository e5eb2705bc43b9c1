"""The default network as ONNX in 32, 16 and 8 bits: size, speed in ONNX Runtime, and what it loses on photos.

With random weights, unless `--ckpt` gives a training: ranges of activations, and so the loss of 8 bits, hang on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import arguments, parser, ratio, summary, take_turns, write

from smsff.generator.unet import UNetGenerator
from smsff.stylize.export import load_generator_from_checkpoint
from smsff.stylize.onnx_model import export_onnx

PRECISIONS = ("float32", "float16", "int8")


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    import onnxruntime

    made = parser(__doc__ or "")
    made.add_argument("--ckpt", type=Path, help="a checkpoint, or the folder of a run")
    made.add_argument("--size", type=int, default=512, help="side of the picture that is timed")
    args = arguments(made, words)
    network: Any = UNetGenerator(widths=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1,)) if args.quick else None
    if network is None and args.ckpt:
        network, _ = load_generator_from_checkpoint(args.ckpt)
    elif network is None:
        network = UNetGenerator()
        torch.nn.init.normal_(network.to_rgb.weight, std=0.05)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    x = {"image": torch.rand(1, 3, *[64 if args.quick else args.size] * 2).numpy()}
    found: dict[str, Any] = {}
    candidates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS[:: 2 if args.quick else 1]:
            path = Path(folder) / f"{precision}.onnx"
            agreement = export_onnx(network, path, precision=precision)  # type: ignore[arg-type]
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            candidates[precision] = partial(session.run, None, x)
            found[precision] = {"megabytes": path.stat().st_size / 1e6, "psnr": agreement.psnr}
    turns = take_turns(candidates, turns=args.turns, threads=args.threads)
    for precision in candidates:
        found[precision]["float32_over_it"] = ratio(turns, "float32", precision)
    weights = "trained" if args.ckpt else "random"
    return write(args, {"weights": weights, "size": args.size, "files": found, "seconds": summary(turns)})


if __name__ == "__main__":
    main()
