"""Speed of the default network beside the ResNet-9 of the peers and the TransformerNet of fast neural style.

In PyTorch (forward; with backward at the training sizes) and in ONNX Runtime, and its own cost per pixel from small
pictures to very large ones in tiles.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import arguments, parser, ratio, summary, take_turns, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformer_net import TransformerNet

from smsff.generator.resnet import ResNetGenerator
from smsff.generator.unet import UNetGenerator
from smsff.stylize.heap import glibc
from smsff.stylize.onnx_model import convert
from smsff.stylize.stages import in_stages
from smsff.stylize.stylizer import Stylizer
from smsff.weights.memory import Live

NETWORKS: dict[str, Callable[[], Any]] = {
    "ours": UNetGenerator,
    "resnet": ResNetGenerator,
    "transformer_net": TransformerNet,
}
OTHERS = ("resnet", "transformer_net")


def gmac(network: nn.Module, size: int) -> float:
    """10^9 multiply-adds of one picture of size x size."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    return counter.get_total_flops() / 2e9


def run(network: nn.Module, x: Tensor, *, training: bool, dtype: torch.dtype) -> None:
    """One forward pass, or one forward and backward pass."""
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        if not training:
            with torch.inference_mode():
                network(x)
            return
        network.zero_grad(set_to_none=True)
        loss = network(x).square().mean()
    loss.backward()


def in_pytorch(size: int, batch: int, args: Any, *, training: bool) -> dict[str, Any]:
    """All networks in float32; ours also in channels_last and in bfloat16."""
    networks = {name: make().to(args.device) for name, make in NETWORKS.items()}
    x = torch.rand(batch, 3, size, size, device=args.device) * 2 - 1
    step = partial(run, x=x, training=training)
    candidates = {name: partial(step, network, dtype=torch.float32) for name, network in networks.items()}
    last = UNetGenerator().to(args.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    candidates["ours, channels_last"] = partial(step, last, dtype=torch.float32)
    candidates["ours, bfloat16"] = partial(step, networks["ours"], dtype=torch.bfloat16)
    candidates["ours, bfloat16, channels_last"] = partial(step, last, dtype=torch.bfloat16)
    turns = take_turns(candidates, turns=args.turns, threads=args.threads, device=args.device)
    others = {f"{name} over ours": ratio(turns, name, "ours") for name in OTHERS}
    forms = {f"ours over {name}": ratio(turns, "ours", name) for name in candidates if name.startswith("ours,")}
    what = "forward and backward" if training else "forward"
    return {"what": what, "size": size, "batch": batch, "ratios": others | forms, "seconds": summary(turns)}


def in_onnx(sizes: Sequence[int], args: Any) -> list[dict[str, Any]]:
    """All networks in ONNX Runtime on the CPU, float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in NETWORKS.items():
            path = Path(folder) / f"{name}.onnx"
            convert(make(), path, {})
            sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = []
    for size in sizes:
        x = {"image": torch.rand(1, 3, size, size).numpy()}
        turns = take_turns(
            {name: partial(session.run, None, x) for name, session in sessions.items()},
            turns=args.turns,
            threads=args.threads,
        )
        ratios = {f"{name} over ours": ratio(turns, name, "ours") for name in OTHERS}
        found.append({"what": "ONNX Runtime", "size": size, "batch": 1, "ratios": ratios, "seconds": summary(turns)})
    return found


def cost_per_pixel(sizes: Sequence[int], tiles: Sequence[int], args: Any) -> list[dict[str, Any]]:
    """Ours on square pictures as 8-bit RGB, in tiles of a size (0: whole); seconds for a pixel beside 256 x 256."""
    network = UNetGenerator().to(args.device)
    found = []
    smallest = torch.randint(256, (1, 3, 256, 256), dtype=torch.uint8)
    reference = Stylizer(network, tile=0, device=args.device)
    for size in sizes:
        picture = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
        for tile in tiles if size > 1024 else [0]:
            stylizer = Stylizer(network, tile=tile, device=args.device)
            turns = take_turns(
                {"256": partial(many, reference, smallest), "this": partial(stylizer, picture)},
                turns=args.turns,
                threads=args.threads,
                device=args.device,
            )
            factor = 4 * 256**2 / size**2
            each = [{"256": 1.0, "this": turn["this"] / turn["256"] * factor} for turn in turns]
            found.append({"size": size, "tile": tile, "cost_of_a_pixel": ratio(each, "this", "256")})
            print(f"{size}, tile {tile}: {found[-1]['cost_of_a_pixel']['median']:.2f}", flush=True)
    return found


def counted(size: int) -> dict[str, Any]:
    """Arithmetic and working memory of a large picture, whole and in stages, without computing anything."""
    found = {}
    with torch.device("meta"), torch.no_grad():
        network, x = UNetGenerator(), torch.empty(1, 3, size, size)
        for name, call in {"whole": network, "in stages": partial(in_stages, network)}.items():
            with FlopCounterMode(display=False) as counter:
                call(x)
            with Live([network]) as live:
                call(x)
            found[name] = {"gmac_for_256_x_256": counter.get_total_flops() / 2e9 * 256**2 / size**2}
            found[name] |= {"gigabytes": live.peak / 1e9, "bytes_for_a_pixel": live.peak / size**2}
    return {"size": size, **found}


def resident(size: int, args: Any) -> dict[str, Any]:
    """Most memory that this process has had, once it has stylized one picture of size x size."""
    Stylizer(UNetGenerator(), tile=args.tiles[0])(torch.randint(256, (1, 3, size, size), dtype=torch.uint8))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"size": size, "memory_stays": glibc() is not None, "gigabytes": most / 1e9}


def many(stylizer: Stylizer, picture: Tensor) -> None:
    """Four small pictures one by one: long enough to be timed."""
    for _ in range(4):
        stylizer(picture)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__ or "")
    made.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="side of the pictures, pixels")
    made.add_argument("--large", type=int, nargs="+", default=[256, 1024, 2048], help="of the cost of a pixel")
    made.add_argument("--tiles", type=int, nargs="+", default=[4096], help="tiles of pictures above 1024; 0: none")
    made.add_argument("--training-size", type=int, default=64)
    made.add_argument("--training-batch", type=int, default=8)
    made.add_argument("--resident", type=int, help="measure this alone: memory of the process after one such picture")
    args = arguments(made, words)
    if args.resident:
        return write(args, {"resident": resident(args.resident, args)})
    if args.quick:
        args.sizes, args.large, args.training_size, args.training_batch = [32], [256], 32, 1
    made_once = {name: make() for name, make in NETWORKS.items()}
    sizes = {
        name: {"parameters": sum(p.numel() for p in network.parameters()), "gmac_256": gmac(network, 256)}
        for name, network in made_once.items()
    }
    results = [in_pytorch(size, 1, args, training=False) for size in args.sizes]
    results.append(in_pytorch(args.training_size, args.training_batch, args, training=True))
    if args.device == "cpu":
        results += in_onnx(args.sizes, args)
    large = counted(64 if args.quick else 4096)
    print(sizes, large, flush=True)
    pixels = cost_per_pixel(args.large, args.tiles, args)
    return write(args, {"networks": sizes, "results": results, "cost_per_pixel": pixels, "counted": large})


if __name__ == "__main__":
    main()
