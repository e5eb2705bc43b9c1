"""Prompts to embeddings, each encoded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from smsff.errors import UserError
from smsff.teacher.condition import Condition
from smsff.teacher.lora.switch import AdapterSwitch

logger = logging.getLogger(__name__)

_BATCH = 64  # prompts per call of the text encoders


class PromptEncoder(nn.Module):
    """CLIP text encoders with a cache, so that they can be freed once every prompt has been encoded.

    One encoder gives its last hidden states, as Stable Diffusion 1.x and 2.x read them. Two give their hidden states
    before the last layer, side by side, and the second one's pooled projection: SDXL (Podell et al. 2023).

    The number of tokens L is the tokenizer's, bounded by the encoder's positions: 77 in Stable Diffusion, but nothing
    here depends on it. Longer prompts are cut, with a warning.

    Args:
        text_encoders, tokenizers: one or two of each.
        empty_is_zero: the empty prompt is zeros instead of what the encoders make of it.
    """

    def __init__(
        self, text_encoders: Sequence[PreTrainedModel], tokenizers: Sequence[Any], *, empty_is_zero: bool = False
    ) -> None:
        super().__init__()
        self.text_encoders: nn.ModuleList | None = nn.ModuleList(text_encoders).requires_grad_(False).eval()
        self._tokenizers: list[Any] = list(tokenizers)
        self._empty_is_zero = empty_is_zero
        self._cache: dict[tuple[str, str | None], Condition] = {}
        self.refresh()

    def train(self, mode: bool = True) -> PromptEncoder:
        """Never leaves evaluation mode, whatever the training loop asks for."""
        return super().train(False)

    def encode(self, prompts: Sequence[str], *, device: torch.device, adapter: str | None = None) -> Condition:
        """Embeddings in float32 on `device`, one row a prompt, for at least one prompt.

        Args:
            adapter: apply this adapter of the text encoders, where they have it; None for the plain ones.

        Raises:
            UserError: for a prompt that was not encoded before the text encoders were dropped.
        """
        keys = [(prompt, adapter) for prompt in prompts]
        new = list(dict.fromkeys(prompt for prompt, _ in keys if (prompt, adapter) not in self._cache))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            with torch.no_grad():
                embeddings = self.embed(batch, adapter=adapter).chunk(len(batch))
            for prompt, embedding in zip(batch, embeddings, strict=True):
                self._cache[(prompt, adapter)] = embedding.to(device)
        for key in keys:  # the teacher may have moved since
            self._cache[key] = self._cache[key].to(device)
        return Condition.cat([self._cache[key] for key in keys])

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The text encoders; none once they are dropped."""
        return tuple(self.text_encoders or ())

    def refresh(self) -> None:
        """Find the adapters again after one was added, and switch all of them off."""
        self._switches = [AdapterSwitch(encoder) for encoder in self.encoders]

    def drop(self) -> None:
        """Free the text encoders and the tokenizers; what has been encoded stays available."""
        self.text_encoders = None
        self._switches, self._tokenizers = [], []

    def embed(self, prompts: list[str], *, adapter: str | None = None) -> Condition:
        """As `encode`, on the encoders' own device, computed anew and differentiable in a LoRA that is trained."""
        if self.text_encoders is None:
            raise UserError(
                f"the prompt {prompts[0]!r} was not encoded before the text encoder was dropped; encode every prompt "
                "and caption of the run first"
            )
        tokens: list[Tensor] = []
        pooled: Tensor | None = None
        several = len(self.text_encoders) > 1
        for index in range(len(self.text_encoders)):
            output = self._run(index, prompts, adapter, hidden=several)
            tokens.append((output.hidden_states[-2] if several else output.last_hidden_state).float())
            if index == 1:
                pooled = output.text_embeds.float()
        condition = Condition(torch.cat(tokens, dim=-1), pooled)
        if self._empty_is_zero:
            kept = torch.tensor([prompt != "" for prompt in prompts], device=condition.tokens.device)
            condition = condition.map(lambda x: x * kept.view(-1, *[1] * (x.ndim - 1)))
        return condition

    def _run(self, index: int, prompts: list[str], adapter: str | None, *, hidden: bool) -> Any:
        """The output of one text encoder for these prompts."""
        assert self.text_encoders is not None
        encoder, tokenizer = self.text_encoders[index], self._tokenizers[index]
        config: Any = encoder.config
        length = min(tokenizer.model_max_length, config.max_position_embeddings)
        tokens = tokenizer(prompts, return_tensors="pt", max_length=length, padding="max_length", truncation=True)
        if index == 0:
            warn_if_cut(tokenizer, prompts, length)
        device = next(encoder.parameters()).device
        # Stable Diffusion attends to the padding too; only encoders that say so use the mask.
        mask = tokens.attention_mask.to(device) if getattr(config, "use_attention_mask", False) else None
        with self._switches[index].using(adapter):
            return encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=hidden)


def warn_if_cut(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Say which prompts are longer than `length` tokens."""
    ids = tokenizer(list(prompts), padding=False, truncation=False, verbose=False).input_ids
    cut = [prompt for prompt, tokens in zip(prompts, ids, strict=True) if len(tokens) > length]
    if cut:
        logger.warning("%d prompts are longer than %d tokens and were cut, the first: %r", len(cut), length, cut[0])
