"""Kernels that one pass of the U-Net launches on a GPU, counted without one: Stable Diffusion 1.5, one sample.

At batch 1 a fast GPU waits for the processor to launch kernels, so their number is what a step costs there. The real
scores run on tensors that have a device, a shape and a dtype but no numbers (PyTorch's fake tensors); every operation
that computes counts as one kernel, fused attention too. torch.compile merges most of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft import LoraConfig
from pipelines import LORA_TARGETS
from timing import arguments, parser, write
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smsff.teacher.base.families import family_config
from smsff.teacher.condition import Condition
from smsff.teacher.fake_score import LoraFakeScore
from smsff.teacher.stable_diffusion import STYLE, StableDiffusionTeacher
from smsff.weights.memory import skeleton_condition, skeleton_teacher

FORMS: dict[str, tuple[torch.dtype, dict[str, bool]]] = {
    "float32": (torch.float32, {"mixed": False}),
    "bfloat16 under autocast": (torch.bfloat16, {"mixed": True, "around": False}),
    "bfloat16 outside of autocast, as shipped": (torch.bfloat16, {"mixed": True}),
}
SD15 = family_config("sd1")
RANK = 32
SHAPES = (
    "view", "_unsafe_view", "reshape", "expand", "slice", "select", "transpose", "permute", "t.", "unsqueeze",
    "squeeze", "split", "unbind", "detach", "alias", "as_strided", "empty", "new_empty", "lift_fresh", "promote_types",
)  # fmt: skip
"""Operations that only look at the same memory in another way, or reserve it."""


class Launches(TorchDispatchMode):
    """Counts operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if func.namespace == "aten" and not name.startswith(SHAPES):
            self.found[name.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Attention is one kernel on a GPU, in the lower precision under autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return torch.relu(args[0].bfloat16() if torch.is_autocast_enabled("cuda") else args[0])


@contextmanager
def autocast() -> Iterator[None]:
    """Of a GPU; `torch.autocast` would warn that there is none and stay off."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def on_gpu(x: Tensor) -> Tensor:
    """The same tensor, without numbers, on a GPU that need not be there."""
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


def move(network: nn.Module) -> None:
    """All tensors of a network, in place."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(on_gpu(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = on_gpu(buffer)


def build(dtype: torch.dtype, mode: FakeTensorMode) -> dict[str, Callable[..., Tensor]]:
    """Base, style and fake score, with the frozen U-Net in a dtype."""
    teacher: StableDiffusionTeacher = skeleton_teacher(SD15, dtype=dtype, gradient_checkpointing=False)
    teacher.unet.add_adapter(LoraConfig(r=RANK, target_modules=LORA_TARGETS), STYLE)
    for name, parameter in teacher.unet.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
    fake = LoraFakeScore(teacher)
    teacher.has_style = True
    with mode:
        move(teacher)
    return {"base": teacher.base, "style": teacher.style, "fake": fake}


def count(score: Callable[..., Tensor], *, mixed: bool, around: bool = True) -> Counter[str]:
    """Kernels of one call of a score.

    Args:
        mixed: whether it is called under autocast.
        around: whether a network in 16 bits runs outside of it all the same, as it does.
    """
    cond = Condition(on_gpu(skeleton_condition(SD15, 1).tokens))
    z_t, t = torch.empty(1, 4, 64, 64, device="cuda"), torch.empty(1, dtype=torch.long, device="cuda")
    inside = nullcontext() if around else patch("smsff.teacher.stable_diffusion.without_autocast", nullcontext)
    with inside, autocast() if mixed else nullcontext(), FusedAttention(), Launches() as launches:
        score(z_t, t, cond)
    return launches.found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(parser(__doc__ or ""), words)
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it comments on casts of networks that hold nothing
    rows = {}
    mode = FakeTensorMode()
    scores = {dtype: build(dtype, mode) for dtype in (torch.float32, torch.bfloat16)}
    with mode:
        for score in scores[torch.float32]:
            for name, (dtype, options) in FORMS.items():
                found = count(scores[dtype][score], **options)
                rows[f"{score}, {name}"] = {"kernels": found.total(), "casts": found["_to_copy"]}
                print(f"{score}, {name}: {found.total()} kernels, {found['_to_copy']} of them casts", flush=True)
    return write(args, {"rows": rows})


if __name__ == "__main__":
    main()
