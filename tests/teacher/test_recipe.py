"""The recipe of the embedded teacher, end to end at a few steps: what it writes loads through the ordinary loader."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from smsff.config import resolve
from smsff.data.content import close, content, degrade
from smsff.data.known_styles import STYLES
from smsff.style_lora.known import training_photos
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
    photos = training_photos()
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
    with pytest.raises(SystemExit, match="'fresco' is none of ink"):
        list(recipe.styles_of("cel,fresco"))


@pytest.mark.slow
def test_whole_recipe_writes_a_teacher_that_loads(tmp_path: Path) -> None:
    out, work = tmp_path / "teacher", tmp_path / "work"
    photos = tmp_path / "photos"
    photos.mkdir()
    training_photos()[0].save(photos / "one.jpg")
    few = ["--pictures", "30", "--autoencoder-steps", "2", "--base-steps", "2", "--style-steps", "3", "--styles", "cel"]
    few += ["--autoencoder-batch", "8", "--base-batch", "4", "--style-batch", "4", "--photos", str(photos)]
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


def test_the_recipe_trains_styles_with_the_numbers_of_the_experiment() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["experiment=style_lora", "name=cel", "data.root=x", "run_dir=x"])
    conf = resolve(cfg)
    module = recipe.style_lora(
        embedded.ASSETS, "cel", steps=conf["steps"], rank=conf["lora"]["rank"], seed=conf["seed"]
    )
    parts = {"lora": module.style.options, "prompts": module.prompts, "timesteps": module.timesteps}
    parts |= {"loss": module.loss, "samples": module.samples}
    for name, part in parts.items():
        expected = {key: value for key, value in conf[name].items() if key != "_target_"}
        if name == "timesteps":
            expected["t_max"] = 399
        assert json.loads(json.dumps(asdict(part))) == expected, name  # tuples are lists in a configuration
    assert conf["trainer"]["precision"] == recipe.PRECISION
    rate = {key: value for key, value in conf["optimizer"]["unet"].items() if key != "_target_"}
    assert json.loads(json.dumps(asdict(module.unet_options))) == {**rate, "lr": 2e-3}


def test_the_bank_is_the_same_for_any_number_of_workers() -> None:
    photos = training_photos()[:2]
    one, two = (recipe.make_bank(3, 7, photos, workers=workers) for workers in (1, 2))
    assert set(one) == {"photo", "loose", "kind", *recipe.SHIPPED}
    for kind, pictures in one.items():
        assert torch.equal(pictures, two[kind]), kind
    truth = STYLES["cel"](one["photo"].float() / 255)
    assert (truth * 255 - one["cel"]).abs().median() < 3  # the photo of the bank was rounded before
