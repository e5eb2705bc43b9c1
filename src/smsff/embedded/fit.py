"""Training a style LoRA without the command line: what ``train.py`` does, for recipes."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from smsff.embedded.style_bank import StyleBank
from smsff.style_lora.module import StyleLora
from smsff.training.callbacks.progress import LineProgress


def fit_style_lora(
    module: StyleLora, data: StyleBank, *, folder: Path, precision: str = "32-true", every: int = 100
) -> None:
    """Train `module` in place for its own number of steps, and measure the held-out loss at the end.

    Args:
        module: To be trained; its ``held_out_losses`` are set afterwards.
        data: Its pictures.
        folder: Of its checkpoint; where one lies already, the training goes on from it.
        precision: As of Lightning's trainer.
        every: Steps between two lines of progress, and between two checkpoints.
    """
    module.prepare_prompts(data.captions(), data.prior_captions())
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=every, enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=module.steps,
        max_epochs=-1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[LineProgress(every=every), keep],
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=module.steps,
        check_val_every_n_epoch=None,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)
