"""Prompts to embeddings, each encoded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from smsff.errors import UserError
from smsff.teacher.lora import AdapterSwitch

logger = logging.getLogger(__name__)

_BATCH = 64  # prompts per call of the text encoder


class PromptEncoder(nn.Module):
    """A CLIP text encoder with a cache, so that it can be freed once every prompt has been encoded.

    The number of tokens L is the tokenizer's, bounded by the encoder's positions: 77 in Stable Diffusion, but nothing
    here depends on it. Longer prompts are cut, with a warning.
    """

    def __init__(self, text_encoder: PreTrainedModel, tokenizer: Any) -> None:
        super().__init__()
        self.text_encoder: PreTrainedModel | None = text_encoder.requires_grad_(False).eval()
        self._tokenizer: Any = tokenizer
        self._switch: AdapterSwitch | None = AdapterSwitch(text_encoder)
        self._cache: dict[tuple[str, str | None], Tensor] = {}

    def train(self, mode: bool = True) -> PromptEncoder:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    def encode(self, prompts: Sequence[str], *, device: torch.device, adapter: str | None = None) -> Tensor:
        """Last hidden states (N, L, D) in float32 on `device`, for at least one prompt.

        Args:
            adapter: apply this adapter of the text encoder; None for the plain one.

        Raises:
            UserError: for a prompt that was not encoded before the text encoder was dropped.
        """
        keys = [(prompt, adapter) for prompt in prompts]
        new = list(dict.fromkeys(prompt for prompt, _ in keys if (prompt, adapter) not in self._cache))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            for prompt, embedding in zip(batch, self._encode(batch, adapter), strict=True):
                self._cache[(prompt, adapter)] = embedding.to(device)
        for key in keys:  # the teacher may have moved since
            self._cache[key] = self._cache[key].to(device)
        return torch.stack([self._cache[key] for key in keys])

    def drop(self) -> None:
        """Free the text encoder and the tokenizer; what has been encoded stays available."""
        self.text_encoder = self._switch = self._tokenizer = None

    @torch.no_grad()
    def _encode(self, prompts: list[str], adapter: str | None) -> Tensor:
        if self.text_encoder is None or self._switch is None:
            raise UserError(
                f"the prompt {prompts[0]!r} was not encoded before the text encoder was dropped; encode every prompt "
                "and caption of the run first"
            )
        length = min(self._tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        cut = {"max_length": length, "padding": "max_length", "truncation": True}
        tokens = self._tokenizer(prompts, return_tensors="pt", **cut)
        self._warn_if_cut(prompts, length)
        device = next(self.text_encoder.parameters()).device
        # Stable Diffusion 1.x attends to the padding too; only encoders that say so use the mask.
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        with self._switch.using(adapter):
            return self.text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state.float()

    def _warn_if_cut(self, prompts: list[str], length: int) -> None:
        ids = self._tokenizer(prompts, padding=False, truncation=False, verbose=False).input_ids
        cut = [prompt for prompt, tokens in zip(prompts, ids, strict=True) if len(tokens) > length]
        if cut:
            logger.warning("%d prompts are longer than %d tokens and were cut, the first: %r", len(cut), length, cut[0])
