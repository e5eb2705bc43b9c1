"""How a step is computed: what may be shared, and in which layout, precision and form the networks run.

`conf/speed/` has the choices; what each of them gains and costs stands in docs/notebook/performance.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smsff.errors import UserError

logger = logging.getLogger(__name__)

Part = Literal["generator", "scores"]

BACKEND = "inductor"
"""Of torch.compile."""
GRAPHS = 64
"""Most versions of one compiled function: a U-Net has one for each adapter, batch size, picture size and gradient."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """
    Attributes:
        share_draw: The fake score learns from the draw of t and noise, and from the very prediction, that the style
            gradient is made of (ours). One forward pass less; ``fake_timesteps`` then count in the warm-up alone.
        channels_last: Memory layout (B, H, W, C) of all networks; None: where the teacher computes in 16 bits.
        compile: Parts that torch.compile turns into code of their own during the first steps, which takes minutes.
        tf32: Matrix products of float32 in TF32 on GPUs that have it: 10 bits of mantissa, many times faster.
    """

    share_draw: bool = False
    channels_last: bool | None = None
    compile: Sequence[Part] = ()
    tf32: bool = True

    def set_memory_format(self, generator: nn.Module, teacher: object) -> None:
        """Put the weights of the networks into the wanted memory layout."""
        unet = getattr(teacher, "unet", None)
        in_16_bits = isinstance(unet, nn.Module) and next(unet.parameters()).dtype.itemsize == 2
        if in_16_bits if self.channels_last is None else self.channels_last:
            for network in (generator, teacher):
                known = [*network.parameters(), *network.buffers()] if isinstance(network, nn.Module) else []
                for weight in known:
                    if weight.ndim == 4:  # others, as those of an encoder of videos, have no such layout
                        weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def prepare(self, generator: nn.Module, teacher: object) -> None:
        """Compile what is to be compiled, in place, so that names in state dicts stay; set the precision of products.

        Args:
            teacher: Its ``unet`` and ``style_unet``, where it has them, are the scores.

        Raises:
            UserError: something is to be compiled and torch.compile does not work here, as where no compiler is found.
        """
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        scores = [getattr(teacher, name, None) for name in ("unet", "style_unet")]
        parts: dict[Part, list[object]] = {"generator": [generator], "scores": scores}
        if self.compile:
            check_compiler(self.compile)
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
            logger.info("%s will be compiled in the first steps, which takes minutes", " and ".join(self.compile))
        for part in self.compile:
            for network in parts[part]:
                if isinstance(network, nn.Module):
                    network.compile(backend=BACKEND)


def check_compiler(parts: Sequence[str]) -> None:
    """Compile next to nothing: what fails does so within seconds, before weights are sent and pictures read.

    Raises:
        UserError: it fails.
    """
    x = torch.ones(1, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.compile(torch.neg, backend=BACKEND)(x)
    except Exception as error:
        reason = " ".join(str(error).splitlines()[:2]).strip() or type(error).__name__
        raise UserError(
            f"speed.compile=[{','.join(parts)}]: torch.compile does not work on this machine ({reason}); install what "
            "it asks for (a C++ compiler, on a GPU Triton too), or use speed.compile=[]"
        ) from error


PLAIN = Speed()
"""Nothing shared, and networks as they were loaded."""


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within the context every operation keeps the dtypes it is given, on devices that have autocast at all."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on a device; from the main memory without waiting for what the device still has to do."""
    if device.type == "cuda" and not x.is_cuda:
        x = x.pin_memory()  # the copy of pageable memory would wait
    return x.to(device, non_blocking=True)
