"""The LoRA that is trained: adapters on the teacher's U-Net and, if wanted, on its text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.prompts import PromptEncoder
from smsff.teacher.stable_diffusion import STYLE, StableDiffusionTeacher
from smsff.teacher.trainable import add_lora, checkpointing


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Size and places of the LoRA, the keys of ``lora``; the adapted weight is W + alpha / rank * up @ down.

    ``merged`` trains through the sum of the weights instead of through layers beside them: the same function, twice as
    fast where the network is small beside its pictures. It needs float32 weights and no gradient checkpointing. With
    ``text_rank=0`` the text encoders are left alone, and freed after the prompts.
    """

    rank: int = 16
    alpha: float = 16.0
    target_modules: Sequence[str]
    merged: bool = False
    text_rank: int = 0
    text_alpha: float = 8.0
    text_modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    gradient_checkpointing: bool = False
    seed: int = 0


class TrainableStyle:
    """The teacher with a style adapter that is trained; its `style` score follows at once.

    Adds the adapters `style` to ``teacher.unet`` and, with a text rank, to the text encoders. Only they require
    gradients, in float32. The parameters live in the teacher: nothing here is a module.

    Attributes:
        unet_parameters, text_parameters: The trained parameters by name, in a fixed order.

    Raises:
        UserError: the teacher has a style already, or the options do not fit its networks.
    """

    def __init__(self, teacher: StableDiffusionTeacher, options: LoraOptions) -> None:
        if teacher.has_style:
            raise UserError("teacher.lora, teacher.style_base: must be null, the style is what is trained")
        if teacher.call is not None and (options.merged or options.text_rank):
            raise UserError(
                f"lora.merged={str(options.merged).lower()}, lora.text_rank={options.text_rank}: must be false and 0 "
                "for a flow teacher: a LoRA is trained beside its transformer alone"
            )
        self.teacher, self.options = teacher, options
        if options.merged and any(p.dtype not in (torch.float32, torch.float64) for p in teacher.unet.parameters()):
            raise UserError("lora.merged=true: half precision would round the LoRA away; set teacher.dtype=float32")
        self.unet_parameters = add_lora(
            teacher.unet,
            STYLE,
            rank=options.rank,
            alpha=options.alpha,
            target_modules=options.target_modules,
            seed=options.seed,
            keys=("lora.rank", "lora.target_modules"),
        )
        teacher.adapters.refresh()
        self.text_parameters: dict[str, nn.Parameter] = {}
        if options.text_rank and isinstance(teacher.prompts, PromptEncoder):
            self.text_parameters = self._add_to_text(teacher.prompts)
        teacher.requires_grad_(False)
        for parameter in (*self.unet_parameters.values(), *self.text_parameters.values()):
            parameter.requires_grad_(True)
        teacher.has_style = True
        if options.gradient_checkpointing:
            teacher.unet.enable_gradient_checkpointing(checkpointing(teacher.adapters))
        self._layers = [(n, m) for n, m in teacher.unet.named_modules() if isinstance(m, LoraLayer)]

    def _add_to_text(self, prompts: PromptEncoder) -> dict[str, nn.Parameter]:
        found = {}
        for i, encoder in enumerate(self.text_encoders):
            # SDXL reads its first encoder before the last layer, whose LoRA would never get a gradient.
            config: Any = encoder.config
            unused = f"layers.{config.num_hidden_layers - 1}." if i + 1 < len(self.text_encoders) else None
            added = add_lora(
                encoder,
                STYLE,
                rank=self.options.text_rank,
                alpha=self.options.text_alpha,
                target_modules=self.options.text_modules,
                seed=self.options.seed + 1 + i,
                keys=("lora.text_rank", "lora.text_modules"),
            )
            for name, parameter in added.items():
                if unused is None or unused not in name:
                    found[f"text_encoder_{i}.{name}"] = parameter
        prompts.refresh()
        return found

    @property
    def text_encoders(self) -> Sequence[nn.Module]:
        """The text encoders, none once they were freed."""
        return list(self.teacher.prompts.text_encoders or ())

    def merged_weights(self) -> dict[str, Tensor]:
        """W + alpha / rank * up @ down of every adapted layer of the U-Net, by the name of W; differentiable."""
        weights = {}
        for name, layer in self._layers:
            weight = layer.get_base_layer().weight
            down, up = layer.lora_A[STYLE].weight, layer.lora_B[STYLE].weight
            change = (up.flatten(1) @ down.flatten(1)).view_as(weight)
            weights[f"{name}.base_layer.weight"] = weight + layer.scaling[STYLE] * change
        return weights

    def output(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The adapted network's own prediction (eps or v), (B, C, h, w), differentiable in the LoRA."""
        teacher = self.teacher
        if self.options.merged:
            with teacher.using(None):
                return teacher.output(teacher.unet, z_t, t, cond, weights=self.merged_weights())
        with teacher.using(STYLE):
            return teacher.output(teacher.unet, z_t, t, cond)

    def base_output(self, z_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The same without the LoRA."""
        with self.teacher.using(None):
            return self.teacher.output(self.teacher.unet, z_t, t, cond)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Embeddings of the prompts as the style sees them: differentiable in a LoRA on the text encoders."""
        encoder = self.teacher.prompts
        if not self.text_parameters or not isinstance(encoder, PromptEncoder):
            return self.teacher.encode_prompts(prompts)
        return encoder.embed(list(prompts), adapter=STYLE)
