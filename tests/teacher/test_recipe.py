"""The recipe of the embedded teacher, end to end at a few steps: what it writes loads through the ordinary loader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch.func import functional_call

from smsff.data.content import close, content, degrade
from smsff.teacher import embedded, recipe
from smsff.teacher.stable_diffusion import load_stable_diffusion


def test_tokenizer_knows_its_words_and_spells_the_others() -> None:
    tokenizer = embedded.build_tokenizer()
    begin, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens(tokenizer("a pencil sketch").input_ids[1:-1]) == [
        "a</w>",
        "pencil</w>",
        "sketch</w>",
    ]
    ids = tokenizer("a xyz").input_ids
    assert ids[0] == begin
    assert ids[-1] == end
    assert len(ids) == 6
    assert tokenizer.decode(ids[1:-1]).strip() == "a xyz"


def test_content_is_reproducible_varied_and_in_range() -> None:
    photos = recipe.training_photos()
    first, again, other = (content(photos, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for seed in range(20):
        x = content(photos, 24, np.random.default_rng(seed))
        assert np.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1


def test_learning_rate_rises_holds_and_falls() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    steps: list[float] = []

    def loss() -> torch.Tensor:
        steps.append(weight.item())
        return weight.sum()

    recipe.optimise("test", [weight], loss, steps=100, learning_rate=1e-2, warmup=10, hold=0.5)
    moves = -np.diff([*steps, weight.item()])
    assert moves[0] == pytest.approx(1e-3, rel=1e-3)
    assert moves[30] == pytest.approx(1e-2, rel=1e-3)
    assert moves[-1] == pytest.approx(2e-4, rel=1e-2)


def test_unknown_style_is_refused() -> None:
    with pytest.raises(SystemExit, match="'fresco' is none of cel"):
        list(recipe.styles_of("cel,fresco"))


@pytest.mark.slow
def test_whole_recipe_writes_a_teacher_that_loads(tmp_path: Path) -> None:
    out, work = tmp_path / "teacher", tmp_path / "work"
    few = ["--pictures", "30", "--autoencoder-steps", "2", "--base-steps", "2", "--style-steps", "3", "--styles", "cel"]
    recipe.main(["--out", str(out), "--work", str(work), *few])
    figures = json.loads((work / "figures.json").read_text())
    assert set(figures["cel"]) == {"base", "style"}
    assert figures["cel"]["base"] != figures["cel"]["style"]
    teacher = load_stable_diffusion(base=str(out), lora=str(out / "loras" / "cel.safetensors"))
    cond = teacher.encode_prompts(["cel style, a picture"])
    z, t = torch.randn(1, embedded.LATENT_CHANNELS, 16, 12), torch.tensor([200])
    assert not torch.equal(teacher.style(z, t, cond), teacher.base(z, t, cond))


def test_degrading_removes_thin_lines_adds_texture_and_stays_in_range() -> None:
    styled = torch.full((8, 3, 40, 48), 0.8)
    styled[..., 20, :] = 0.1  # a dark line
    assert torch.equal(close(styled, 3), torch.full_like(styled, 0.8))
    photos = torch.rand(8, 3, 40, 48)
    x = degrade(styled, photos, np.random.default_rng(0))
    assert x.shape == styled.shape
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(x, degrade(styled, photos, np.random.default_rng(0)))
    contrast = (x[..., :15, :].mean((1, 2, 3)) - x[..., 20, :].mean((1, 2))).clamp(min=0)
    assert contrast.mean() < 0.5
    assert x[..., :15, :].std((1, 2, 3)).max() > 0.05


def test_merged_weights_equal_the_adapter() -> None:
    torch.manual_seed(0)
    unet, adapted = embedded.build_unet(), embedded.build_unet()
    adapted.load_state_dict(unet.state_dict())
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=embedded.LORA_TARGETS), "style")
    state = get_peft_model_state_dict(adapted, adapter_name="style")
    lora = {name: 0.05 * torch.randn_like(value) for name, value in state.items()}
    set_peft_model_state_dict(adapted, lora, adapter_name="style")
    inputs = (torch.randn(2, embedded.LATENT_CHANNELS, 16, 12), torch.tensor([3, 700]))
    cond = {"encoder_hidden_states": torch.randn(2, embedded.CONTEXT_LENGTH, 64)}
    with torch.no_grad():
        merged = functional_call(unet, recipe.merge(unet, lora), inputs, cond).sample
        assert (merged - adapted(*inputs, **cond).sample).abs().max() < 1e-4
        assert (merged - unet(*inputs, **cond).sample).abs().max() > 1e-2
