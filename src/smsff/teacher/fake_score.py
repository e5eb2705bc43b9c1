"""The fake score: the base model with a small LoRA that follows the distribution of the generator's output."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smsff.errors import UserError
from smsff.objective.denoising import DenoisingWeight, check_denoising_weight, denoising_loss, denoising_weight
from smsff.teacher.stable_diffusion import StableDiffusionTeacher

FAKE = "fake"


class LoraFakeScore(nn.Module):
    """A `Score` whose only trainable parameters are the adapter `fake` on the teacher's own U-Net, in float32.

    It starts equal to the base: up = 0, down uniform as torch initialises a linear layer. The parameters live in
    ``teacher.unet`` and this module registers none of them, so that they are not found twice.

    Args:
        teacher: gets the adapter; can carry one fake score.
        rank, alpha: the adapted weight is W + alpha / rank * up @ down.
        target_modules: names of the layers, or the ends of them (``to_q``, ``to_out.0``, ``conv1``, ``proj_in``), that
            get it; linear layers and convolutions.
        loss_weight: of the denoising loss, ``uniform`` or ``alpha_bar_squared``.
        gradient_checkpointing: recompute the U-Net's activations in the backward pass of the loss.
        seed: of the initial down matrices, which depend on nothing else.

    Raises:
        UserError: if a name in `target_modules` fits no layer, and for impossible values of the rest.
    """

    def __init__(
        self,
        teacher: StableDiffusionTeacher,
        *,
        rank: int = 8,
        alpha: float = 32.0,
        target_modules: Sequence[str] = ("to_q", "to_v"),
        loss_weight: DenoisingWeight = "uniform",
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"fake_score.rank={rank} must be at least 1")
        self.loss_weight = check_denoising_weight(loss_weight)
        self._teacher = (teacher,)  # a tuple hides it from nn.Module, which would register it a second time
        _check_targets(teacher.unet, target_modules)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(target_modules))
        with warnings.catch_warnings():  # peft warns of a second adapter, which is what is wanted here
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            teacher.unet.add_adapter(config, FAKE)
        self._parameters_by_name = dict(_adapter_parameters(teacher.unet))
        _initialise(self._parameters_by_name, seed)
        # Adding an adapter switches it on, makes it trainable and touches the others: put all of that right.
        teacher.adapters.refresh()
        teacher.requires_grad_(False)
        for parameter in self._parameters_by_name.values():
            parameter.requires_grad_(True)
        if gradient_checkpointing:
            teacher.unet.enable_gradient_checkpointing(self._checkpoint)

    @property
    def teacher(self) -> StableDiffusionTeacher:
        return self._teacher[0]

    def forward(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Noise prediction (B, C, h, w), at least float32; its gradient reaches the adapter alone, not z_t or cond."""
        with self.teacher.using(FAKE):
            return self.teacher.predict(self.teacher.unet, z_t.detach(), t, cond.detach())

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Denoising loss of each sample, (B,), for latents z (B, C, h, w) of the generator's output.

        Noise is added in float32 at least: in bfloat16 it would be off by up to 0.03.
        """
        schedule = self.teacher.schedule
        z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
        eps = self(schedule.add_noise(z, noise, t), t, cond)
        return denoising_loss(eps, noise, denoising_weight(self.loss_weight, schedule.alpha_bar(t)))

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names as in ``<layer of the U-Net>.lora_A.weight``, in a fixed order, and the float32 parameters."""
        yield from self._parameters_by_name.items()

    def _checkpoint(self, block: nn.Module, *inputs: Any) -> Any:
        """Checkpoint a block of the U-Net. The recomputation happens in the backward pass, when other adapters may be
        active, so it switches back to the one of the forward pass."""
        adapter = self.teacher.adapters.active

        def contexts() -> tuple[Any, Any]:
            return self.teacher.using(adapter), self.teacher.using(adapter)

        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def _check_targets(unet: nn.Module, targets: Sequence[str]) -> None:
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | LoraLayer)]
    # A layer that already has the style adapter contains its original under another name.
    layers = [name for name in layers if ".lora_" not in name and not name.endswith(".base_layer")]
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown or not targets:
        parts = [name.split(".") for name in layers]
        ends = sorted({".".join(part[-2:] if part[-1].isdigit() else part[-1:]) for part in parts})
        raise UserError(
            f"fake_score.target_modules: {', '.join(unknown) or 'empty'} fits no linear layer or convolution of the "
            f"U-Net; there are {', '.join(ends)}"
        )


def _adapter_parameters(unet: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in unet.named_parameters():
        if f".{FAKE}." in name:
            yield name.replace(f".{FAKE}.", "."), parameter


def _initialise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """float32; up zero, down uniform in ±1/sqrt(fan in), the same on every process whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter[0].numel())
            value.uniform_(-bound, bound, generator=generator)
        parameter.data = value.to(parameter.device)
