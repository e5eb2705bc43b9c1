"""Speed of the default network beside the ResNet-9 of the peers, as a ratio.

Times on a shared machine mean little by themselves, so the two networks take turns and the ratio of each turn is what
counts: the median over turns, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from smsff.generator.resnet import ResNetGenerator
from smsff.generator.unet import UNetGenerator


def time_step(network: nn.Module, x: Tensor, *, training: bool) -> float:
    """Seconds of one forward pass, or of one forward and backward pass."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    if training:
        network.zero_grad(set_to_none=True)
        network(x).square().mean().backward()
    else:
        with torch.inference_mode():
            network(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(size: int, *, batch: int, runs: int, training: bool, device: str) -> dict[str, object]:
    """Interleaved times of both networks on (batch, 3, size, size), after one turn that is not counted."""
    networks = {"resnet": ResNetGenerator().to(device), "unet": UNetGenerator().to(device)}
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    turns = [{name: time_step(net, x, training=training) for name, net in networks.items()} for _ in range(runs + 1)][
        1:
    ]
    ratios = [turn["resnet"] / turn["unet"] for turn in turns]
    return {
        "size": size,
        "batch": batch,
        "what": "forward and backward" if training else "forward",
        "runs": runs,
        "resnet_over_unet": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "seconds_median": {name: statistics.median(turn[name] for turn in turns) for name in networks},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="side of the pictures, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="turns that count, at least 5")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    if args.runs < 5:
        parser.error("--runs must be at least 5: a median of fewer says nothing")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report: dict[str, object] = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": args.threads,
        "results": [
            compare(size, batch=args.batch, runs=args.runs, training=training, device=args.device)
            for size in args.sizes
            for training in (False, True)
        ],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
