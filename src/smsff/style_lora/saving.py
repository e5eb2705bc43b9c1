"""The trained LoRA as files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from smsff.errors import UserError
from smsff.style_lora.module import StyleLora
from smsff.teacher.lora.write import Format, save_style_lora
from smsff.teacher.stable_diffusion import STYLE

Dtype = Literal["float32", "float16", "bfloat16"]
FILES: dict[Format, str] = {"kohya": "{}.safetensors", "diffusers": "{}_diffusers.safetensors"}
FLOW_FILES: dict[Format, str] = {"ai-toolkit": "{}.safetensors", "diffusers": "{}_diffusers.safetensors"}


class SaveLora(pl.Callback):
    """Writes ``<name>.safetensors`` and ``<name>_diffusers.safetensors`` whenever a checkpoint is written.

    The first has kohya's names, or for a flow's transformer those of ai-toolkit.

    Args:
        history: Also keep ``<name>_XXXXXX.safetensors``, like the first, of every such step.

    Raises:
        UserError: ``name`` is no file name.
    """

    def __init__(self, *, folder: str | Path, name: str, dtype: Dtype = "float16", history: bool = False) -> None:
        if not name or Path(name).name != name:
            raise UserError(f"name={name!r}: must be the name of a file, without folders")
        self.folder, self.name, self.history = Path(folder), name, history
        self.dtype: torch.dtype = getattr(torch, dtype)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if isinstance(pl_module, StyleLora):
            self.write(pl_module, trainer.global_step)

    @rank_zero_only
    def write(self, module: StyleLora, step: int) -> None:
        """Write the files of this moment."""
        files = FILES if module.teacher.call is None else FLOW_FILES
        for kind, pattern in files.items():
            self._save(module, self.folder / pattern.format(self.name), kind, step)
        if self.history:
            self._save(module, self.folder / f"{self.name}_{step:06d}.safetensors", next(iter(files)), step)

    def _save(self, module: StyleLora, path: Path, kind: Format, step: int) -> None:
        save_style_lora(
            path,
            unet=module.teacher.unet,
            text_encoders=list(module.style.text_encoders),
            adapter_name=STYLE,
            format=kind,
            dtype=self.dtype,
            metadata={
                "ss_output_name": self.name,
                "ss_steps": str(step),
                "modelspec.title": self.name,
                "modelspec.trigger_phrase": module.prompts.trigger,
            },
        )
