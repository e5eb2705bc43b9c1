"""Training a style LoRA without the command line: what ``train.py`` does, for recipes."""

from __future__ import annotations

import lightning.pytorch as pl

from smsff.callbacks.progress import LineProgress
from smsff.style_lora.bank import StyleBank
from smsff.style_lora.module import StyleLora


def fit_style_lora(module: StyleLora, data: StyleBank, *, precision: str = "32-true", every: int = 100) -> None:
    """Train `module` in place for its own number of steps, and measure the held-out loss at the end.

    Args:
        module: To be trained; its ``held_out_losses`` are set afterwards.
        data: Its pictures.
        precision: As of Lightning's trainer.
        every: Steps between two lines of progress.
    """
    module.prepare_prompts(data.captions(), data.prior_captions())
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=module.steps,
        max_epochs=-1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[LineProgress(every=every)],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=module.steps,
        check_val_every_n_epoch=None,
    )
    trainer.fit(module, data)
