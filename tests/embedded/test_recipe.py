"""The recipe of the embedded teacher, end to end at a few steps: what it writes loads through the ordinary loader."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from smsff.embedded import teacher as embedded
from smsff.embedded.content import content
from smsff.embedded.known_styles import STYLES
from smsff.embedded.pictures import training_photos
from smsff.embedded.recipe import __main__ as recipe
from smsff.embedded.recipe import bank, gates
from smsff.embedded.recipe.base import CROP, SAMPLES, WaySamples, all_prompts, continued_base, new_base, tokenize
from smsff.embedded.recipe.train import optimise, rate_factor
from smsff.style_lora.degrade import close, degrade
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
    factors = [rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert set(factors[99:801]) == {1.0}
    assert factors[900] == pytest.approx(0.5)
    assert min(factors[900:]) == pytest.approx(0.02)


def quadratic(step: int, module: nn.Linear) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(4, 3, generator=generator)
    return (module(x) - x.sum(1, keepdim=True)).square().mean()


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def train(file: str, steps: int, *, stop: int | None = None) -> Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss(step: int) -> Tensor:
            if step == stop:
                raise KeyboardInterrupt
            return quadratic(step, module)

        options = {"steps": steps, "checkpoint": tmp_path / file, "seconds": 0.0}
        optimise({"one": module}, {"one": 1e-2}, loss, **options)
        return module.weight.detach()

    whole = train("whole", 40)
    with pytest.raises(KeyboardInterrupt):
        train("killed", 40, stop=17)
    torch.testing.assert_close(train("killed", 40), whole, rtol=0, atol=0)
    assert torch.load(tmp_path / "killed", weights_only=True)["step"] == 40


def test_what_is_kept_is_the_average_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    optimise({"one": module}, {"one": 1e-2}, partial(quadratic, module=module), steps=30, checkpoint=tmp_path / "c")
    stored = torch.load(tmp_path / "c", weights_only=True)
    torch.testing.assert_close(module.weight.detach(), stored["averages"]["one.weight"])
    assert not torch.equal(module.weight.detach(), stored["weights"]["one.weight"])


def way_samples(batch: int) -> WaySamples:
    """Latents whose value tells what they are: photos 0, loose versions 1 + their kind."""
    kind = torch.arange(2 * len(bank.KINDS)) % len(bank.KINDS)
    loose = (1 + kind).float().view(-1, 1, 1, 1).expand(-1, 2, 80, 80)
    return WaySamples({"photo": torch.zeros_like(loose), "loose": loose, "kind": kind}, batch, 0)


def test_samples_are_photos_styles_and_the_way_with_their_prompts() -> None:
    prompts, samples = all_prompts(), way_samples(64)
    found = {"photo": 0, "loose": 0, "way": 0, "mixed": 0, "empty": 0}
    for number in range(20):
        z, target, prompt, t = samples(number)
        assert z.shape == target.shape == (64, 2, CROP, CROP)
        assert t.min() > 0
        assert t.max() < 1000
        for one, goal, name in zip(z, target, [prompts[i] for i in prompt], strict=True):
            value, aim = one.mean().item(), goal.mean().item()
            group = next(key for key, words in embedded.PROMPTS.items() if name in words)
            if group in bank.KINDS:
                assert aim == 1 + bank.KINDS.index(group)
                found["loose" if value == aim else "way"] += 1
            else:
                assert value == aim
                found["photo" if group == "photo" and value == 0 else "mixed" if group else "empty"] += 1
    assert found["way"] / 1280 == pytest.approx(SAMPLES["way"], abs=0.05)
    assert found["empty"] / 1280 == pytest.approx(SAMPLES["empty"], abs=0.03)
    assert found["loose"] / 1280 == pytest.approx(SAMPLES["loose"], abs=0.04)


def test_samples_follow_seed_and_number() -> None:
    first, again, other = way_samples(8)(3), way_samples(8)(3), way_samples(8)(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[3], other[3])


def test_a_base_that_is_trained_on_keeps_its_words_and_learns_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "WORDS", embedded.WORDS[:-1])
    vae = embedded.build_autoencoder()
    old = new_base(vae)
    old.save(tmp_path)
    monkeypatch.undo()
    new = continued_base(tmp_path, vae)
    assert len(new.tokenizer) > len(old.tokenizer)
    for prompt in ("a watercolour painting", ""):
        before, after = (base.text(tokenize(base.tokenizer, [prompt]))[0] for base in (old, new))
        torch.testing.assert_close(after, before, atol=1e-2, rtol=0)  # it was stored in half precision
    torch.testing.assert_close(new.unet.conv_in.weight, old.unet.conv_in.weight, atol=1e-3, rtol=0)


def test_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--work", str(tmp_path), "--styles", "cel,fresco"])


def tiny_recipe(tmp_path: Path, *more: str) -> list[str]:
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    training_photos()[0].save(photos / "one.jpg")
    few = ["--pictures", "100", "--exact", "50", "--autoencoder-steps", "2", "--base-steps", "2", "--style-steps", "3"]
    few += ["--autoencoder-batch", "8", "--base-batch", "4", "--style-batch", "4", "--photos", str(photos)]
    return ["--out", str(tmp_path / "teacher"), "--work", str(tmp_path / "work"), "--styles", "oil", *few, *more]


@pytest.mark.slow
def test_whole_recipe_writes_a_teacher_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "SIDE", 48)
    out, work = tmp_path / "teacher", tmp_path / "work"
    recipe.main(tiny_recipe(tmp_path, "--stop-after", "base"))
    made = {path: path.stat().st_mtime_ns for path in (work / "bank").iterdir()}
    recipe.main(tiny_recipe(tmp_path))
    assert made.items() <= {path: path.stat().st_mtime_ns for path in (work / "bank").iterdir()}.items()
    figures = json.loads((work / "gates.json").read_text())
    assert set(figures) == {"base", "oil"}
    assert set(figures["base"]) == {"photo_losses", *bank.KINDS}
    assert (work / "gates" / "oil.png").exists()
    teacher = load_stable_diffusion(base=str(out), lora=str(out / "loras" / "oil.safetensors"))
    cond = teacher.encode_prompts(["an oil painting"])
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


@pytest.mark.slow
def test_the_bank_of_two_workers_is_that_of_one_process(tmp_path: Path) -> None:
    jobs = [partial(bank.pairs, chunk, seed=7, photos=None, count=3) for chunk in range(2)]
    bank.make_files(tmp_path, dict(zip(bank.names("pairs", 100), jobs, strict=True)), workers=2)
    made, one = bank.load(tmp_path, "pairs", 100), [job() for job in jobs]
    assert set(made) == {"photo", "loose", "kind"}
    assert made["photo"].shape == (6, 3, bank.SIZE, bank.SIZE)
    for kind, pictures in made.items():
        assert torch.equal(pictures, torch.cat([part[kind] for part in one])), kind


def test_exact_pictures_are_of_other_scenes_than_the_pairs() -> None:
    pairs, exact = (
        bank.pairs(0, seed=7, photos=None, count=3),
        bank.exact(0, seed=7, photos=None, styles=["oil"], count=3),
    )
    assert set(exact) == {"oil"}
    truth = STYLES["oil"](pairs["photo"].float() / 255)
    assert (truth * 255 - exact["oil"]).abs().mean((1, 2, 3)).min() > 10


@pytest.mark.parametrize("kind", bank.KINDS)
def test_a_loose_style_varies_and_stays_in_range(kind: str) -> None:
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = [bank.loose_style(x, np.random.default_rng(seed), kind) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].min() >= 0
    assert found[0].max() <= 1


def test_figures_of_a_gate() -> None:
    a = torch.randn(2, 3, 8, 8)
    assert gates.cosine(a, 2 * a) == pytest.approx(1)
    assert gates.length_share(a, 2 * a) == pytest.approx(0.5)
    assert gates.correlation(a, 3 - 2 * a) == pytest.approx(-1)
    truth = torch.rand(2, 3, 16, 16)
    assert gates.gain(0.5 * truth + 0.2, truth) > 60  # a change of tone alone counts for nothing
