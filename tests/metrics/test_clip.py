from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_files import random_picture
from transformers import CLIPImageProcessor

from smsff.errors import UserError
from smsff.metrics.clip import Clip, preference


def test_scores_are_the_models_own_logits_and_the_published_formula(clip_folder: Path) -> None:
    clip, texts = Clip(clip_folder), ["a cat", "a dog in the rain"]
    x = torch.stack([random_picture(i, height=40, width=64) for i in range(2)])
    scores = clip.scores(x.float() / 255, texts)

    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(list(x), return_tensors="pt")["pixel_values"]
    tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
    out = clip.model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(scores, out.logits_per_image.diagonal(), rtol=1e-5, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    torch.testing.assert_close(scores, clip.model.logit_scale.exp() * cosine, rtol=1e-5, atol=1e-5)
    assert scores.std() > 1e-4


def test_embeddings_are_unit_vectors_and_texts_are_computed_once(clip_folder: Path) -> None:
    clip = Clip(clip_folder)
    images = clip.embed_images(torch.rand(3, 3, 50, 41))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    calls: list[int] = []
    clip.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    first = clip.embed_texts(["a", "b", "a"])
    assert torch.equal(first[0], first[2])
    assert torch.equal(clip.embed_texts(["b"])[0], first[1])
    assert len(calls) == 2


def test_long_texts_are_cut_at_77_tokens(clip_folder: Path) -> None:
    clip = Clip(clip_folder)
    long = " ".join("word" for _ in range(200))
    assert torch.equal(clip.embed_texts([long]), clip.embed_texts([long + " and more"]))


def test_win_rate_and_softmax_share() -> None:
    scores = torch.tensor([[2.0, 1.0, 3.0], [1.0, 1.0, 0.0]])
    wins, share = preference(scores)
    assert wins.tolist() == [0.5, 0.75]
    e = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).exp()
    assert share[0].item() == pytest.approx((e[1] / e.sum()).item())
    assert preference(torch.tensor([[20.0, 21.0]]))[1].item() == pytest.approx(1 / (1 + torch.e))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a CLIP model"):
        Clip(tmp_path)
