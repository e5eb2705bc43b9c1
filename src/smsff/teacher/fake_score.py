"""The fake score: the base model with a small LoRA that follows the distribution of the generator's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from smsff.method.denoising import DenoisingWeight, denoising_loss, denoising_weight
from smsff.teacher.condition import Condition
from smsff.teacher.stable_diffusion import StableDiffusionTeacher
from smsff.teacher.trainable import add_lora, checkpointing

FAKE = "fake"


class LoraFakeScore(nn.Module):
    """A `Score` whose only trainable parameters are the adapter `fake` on the teacher's own U-Net, in float32.

    It starts equal to the base: up = 0, down uniform as torch initialises a linear layer. The parameters live in
    ``teacher.unet`` and this module registers none of them, so that they are not found twice.

    Args:
        teacher: gets the adapter; can carry one fake score.
        seed: of the initial down matrices, which depend on nothing else.
        rank, alpha, target_modules, loss_weight, gradient_checkpointing: the keys of ``fake_score``.

    Raises:
        UserError: if a name in `target_modules` fits no layer.
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
        self.loss_weight = loss_weight
        self._teacher = (teacher,)  # a tuple hides it from nn.Module, which would register it a second time
        self._parameters_by_name = add_lora(
            teacher.unet,
            FAKE,
            rank=rank,
            alpha=alpha,
            target_modules=target_modules,
            seed=seed,
            keys=("fake_score.rank", "fake_score.target_modules"),
        )
        # Adding an adapter switches it on, makes it trainable and touches the others: put all of that right.
        teacher.adapters.refresh()
        teacher.requires_grad_(False)
        for parameter in self._parameters_by_name.values():
            parameter.requires_grad_(True)
        if gradient_checkpointing:
            teacher.unet.enable_gradient_checkpointing(checkpointing(teacher.adapters))

    @property
    def teacher(self) -> StableDiffusionTeacher:
        return self._teacher[0]

    def forward(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noise prediction (B, C, h, w), at least float32; its gradient reaches the adapter alone, not z_t or cond."""
        with self.teacher.using(FAKE):
            return self.teacher.predict(self.teacher.unet, z_t.detach(), t, cond.detach())

    def loss(self, z: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Denoising loss of each sample, (B,), for latents z (B, C, h, w) of the generator's output.

        Noise is added in float32 at least: in bfloat16 it would be off by up to 0.03.
        """
        z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
        return self.loss_of(self(self.teacher.schedule.add_noise(z, noise, t), t, cond), noise, t)

    def loss_of(self, eps: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The same of a prediction eps (B, C, h, w) that was made at noise and t."""
        return denoising_loss(eps, noise, denoising_weight(self.loss_weight, self.teacher.schedule.alpha_bar(t)))

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names as in ``<layer of the U-Net>.lora_A.weight``, in a fixed order, and the float32 parameters."""
        yield from self._parameters_by_name.items()
