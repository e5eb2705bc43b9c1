"""CLIP embeddings (Radford et al. 2021) of pictures and texts, and PickScore (Kirstain et al. 2023) from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from smsff.errors import UserError, first_line

MAX_TOKENS = 77


class Clip(nn.Module):
    """A CLIP model with its processor, from a local folder in transformers' layout; float32.

    Pre-processing is the processor's own; texts are cut at 77 tokens.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            self.model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"{folder}: cannot be read as a CLIP model: {first_line(error, at_most=160)}") from error
        self.eval().requires_grad_(False)
        self._texts: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device
        return device

    def embed_images(self, x: Tensor) -> Tensor:
        """Unit vectors (B, D) of pictures (B, 3, H, W) in [0, 1]."""
        pixels = self.processor(list((x.clamp(0, 1) * 255).round().byte().cpu()), return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output
        return nn.functional.normalize(features, dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D); each different text is computed once as long as there are few of them."""
        if len(self._texts) > 10_000:
            self._texts.clear()
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                limit = min(MAX_TOKENS, self.model.config.text_config.max_position_embeddings)
                tokens = self.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt").to(self.device)
                features = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
                self._texts[text] = nn.functional.normalize(features, dim=-1)[0]
        return torch.stack([self._texts[text] for text in texts])

    def scores(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """exp(logit scale) times the cosine of each picture with its text, (B,): PickScore with its weights.

        Args:
            images: (B, 3, H, W) in [0, 1].
            texts: One for each picture.
        """
        cosine = (self.embed_images(images) * self.embed_texts(texts)).sum(-1)
        return self.model.logit_scale.exp() * cosine


def preference(scores: Tensor) -> tuple[Tensor, Tensor]:
    """How candidate 0 does among all candidates for one prompt, by their scores (B, K), K >= 2.

    Returns:
        Win rate, the share of the other candidates that it beats (a tie counts half), and softmax share, its
        probability exp(s_0) / sum_k exp(s_k) of being preferred; both (B,) in [0, 1].
    """
    ours, others = scores[:, :1], scores[:, 1:]
    wins = ((ours > others).double() + 0.5 * (ours == others).double()).mean(1)
    return wins, scores.double().softmax(1)[:, 0]
