"""Training a LoRA without the command line: it goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from styled import style_lora
from torch import Tensor

from smsff.embedded.fit import fit_style_lora
from smsff.embedded.style_bank import StyleBank
from smsff.style_lora.module import StyleLora
from smsff.teacher.stable_diffusion import load_stable_diffusion


class StoppedError(Exception):
    pass


class StopsAt(StyleLora):
    """Fails in one step, as a run that is killed."""

    stop = 3

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if int(batch["iteration"][0]) == self.stop:
            raise StoppedError
        return super().training_step(batch, batch_idx)


def bank() -> StyleBank:
    generator = torch.Generator().manual_seed(0)
    styled, photo = (torch.randint(128, (n, 3, 40, 48), dtype=torch.uint8, generator=generator) for n in (12, 7))
    options: dict[str, Any] = {"resolution": 32, "margin": 0, "batch_size": 2, "steps": 5, "seed": 0, "held_out": 2}
    return StyleBank(styled, pairs=(photo, photo + 128), paired=0.5, restyle=lambda x, rng: x / 2, **options)


def fit(base: Path, folder: Path, kind: type[StyleLora]) -> dict[str, Tensor]:
    module = style_lora(load_stable_diffusion(base=str(base)), steps=5)
    module.__class__ = kind
    fit_style_lora(module, bank(), folder=folder, every=1)
    return {name: value.detach().clone() for name, value in module.style.unet_parameters.items()}


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tiny_base: Path, tmp_path: Path) -> None:
    whole = fit(tiny_base, tmp_path / "whole", StyleLora)
    with pytest.raises(StoppedError):
        fit(tiny_base, tmp_path / "killed", StopsAt)
    for name, value in fit(tiny_base, tmp_path / "killed", StyleLora).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
