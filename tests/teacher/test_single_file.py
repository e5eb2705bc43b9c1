from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import original_names, write_single_file
from torch import Tensor

from smsff.errors import UserError
from smsff.method.schedule import PredictionType
from smsff.teacher.base import single_file
from smsff.teacher.base.components import build_schedule, find_config, settle_prediction
from smsff.teacher.base.families import family_config
from smsff.teacher.base.pipeline_config import Family
from smsff.teacher.base.skeleton import skeleton_texts, skeleton_unet, skeleton_vae
from smsff.teacher.base.source import Source
from smsff.teacher.condition import Condition
from smsff.teacher.stable_diffusion import StableDiffusionTeacher, load_stable_diffusion

FAMILIES = ["sd1", "sd2", "sdxl"]
Families = Callable[..., Path]


def sample(teacher: StableDiffusionTeacher) -> tuple[Tensor, Tensor, Condition]:
    z_t = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    return z_t, torch.tensor([10, 700]), teacher.encode_prompts(["a thin cat", ""])


@pytest.fixture
def edited(family_pipeline: Families, tmp_path: Path) -> Callable[..., Path]:
    """A single file of SD 1's structure with tensors added, removed or replaced."""

    path = write_single_file(tmp_path / "edited.safetensors", family_pipeline("sd1"))
    whole = load_file(path)

    def write(*, drop: str | None = None, **changes: Tensor) -> Path:
        tensors = whole | {name.replace("__", "."): value for name, value in changes.items()}
        save_file({k: v for k, v in tensors.items() if drop is None or not k.startswith(drop)}, path)
        return path

    return write


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_same_model_as_its_folder(family: str, family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline(family)
    file = write_single_file(tmp_path / "model.safetensors", folder)
    one = load_stable_diffusion(base=str(file), lora=None, config=str(folder))
    many = load_stable_diffusion(base=str(folder), lora=None)
    got, wanted = one.state_dict(), many.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], value) for name, value in wanted.items())
    assert not any(tensor.is_meta for tensor in [*one.parameters(), *one.buffers()])
    torch.testing.assert_close(one.base(*sample(one)), many.base(*sample(many)), atol=1e-6, rtol=0)
    assert one.schedule.prediction_type == many.schedule.prediction_type


def test_half_precision_files_and_networks(family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline("sd1")
    file = write_single_file(tmp_path / "model.safetensors", folder)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}, file)
    teacher = load_stable_diffusion(base=str(file), lora=None, config=str(folder), dtype="bfloat16")
    assert {p.dtype for p in teacher.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in [*teacher.latent.parameters(), *teacher.prompts.parameters()]} == {torch.float32}


def test_as_the_base_of_the_style(family_pipeline: Families, tmp_path: Path) -> None:
    folder, other = family_pipeline("sd1"), family_pipeline("sd1", seed=1)
    file = write_single_file(tmp_path / "style.safetensors", other)
    teacher = load_stable_diffusion(base=str(folder), lora=None, style_base=str(file), config=str(folder))
    alone = load_stable_diffusion(base=str(other), lora=None)
    z_t, t, _ = sample(teacher)
    cond = teacher.encode_prompts(["a cat", "ink"], style=True)
    wanted = alone.base(z_t, t, alone.encode_prompts(["a cat", "ink"]))
    torch.testing.assert_close(teacher.style(z_t, t, cond), wanted, atol=1e-6, rtol=0)
    twice = load_stable_diffusion(base=str(file), lora=None, style_base=f"{tmp_path}/./style.safetensors",
                                  config=str(folder))  # fmt: skip
    assert twice.style_unet is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_configuration_serves_without_any_other_file(
    family: Family, family_pipeline: Families, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_single_file(tmp_path / "narrow.safetensors", family_pipeline(family))
    # The weights of this file are narrower than the published ones: that is said, with what to do.
    with pytest.raises(UserError, match=r"another shape than its configuration says.*teacher\.config"):
        find_config(Source(str(file), "teacher.base"))
    published = family_config(family)
    names = original_names([skeleton_unet(published), skeleton_vae(published), *skeleton_texts(published)])
    monkeypatch.setattr(single_file, "header", lambda source: ({k: tuple(v.shape) for k, v in names.items()}, {}))
    assert find_config(Source(str(file), "teacher.base")) == published


def test_what_the_file_says_of_its_noise(
    family_pipeline: Families, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "_parts", lambda config, vae: [])  # the weights are narrower than the published

    def schedule(family: str, wanted: PredictionType | None = None, **options: Any) -> tuple[str, float]:
        file = write_single_file(tmp_path / "m.safetensors", family_pipeline(family), **options)
        source = Source(str(file), "teacher.base")
        ((_, settled),) = settle_prediction([(source, find_config(source))], wanted)
        built = build_schedule(settled)
        return built.prediction_type, built.alphas_cumprod[-1].item()

    last = schedule("sdxl")[1]
    assert schedule("sdxl") == ("epsilon", pytest.approx(0.0047, abs=1e-4))
    empty = torch.zeros(0)
    assert schedule("sdxl", extra={"v_pred": empty}) == ("v_prediction", last)
    zero = schedule("sdxl", extra={"v_pred": empty, "ztsnr": empty})
    assert zero[0] == "v_prediction"
    assert 0 < zero[1] < 1e-6
    silent = "does not say whether it predicts noise or v"
    assert caplog.text.count(silent) == 2  # once for each of the two that say nothing
    caplog.clear()
    for family in ("sdxl", "sd2"):
        for stated in ("v", "V_prediction"):
            assert schedule(family, metadata={"modelspec.prediction_type": stated})[0] == "v_prediction"
        assert schedule(family, metadata={"modelspec.prediction_type": "epsilon"})[0] == "epsilon"
        for wanted in ("epsilon", "v_prediction"):
            assert schedule(family, wanted)[0] == wanted
    assert schedule("sd1")[0] == "epsilon"
    assert not caplog.text
    assert schedule("sd2")[0] == "v_prediction"
    assert caplog.text.count(silent) == 1
    assert "teacher.prediction_type" in caplog.text
    assert schedule("sdxl", "epsilon", extra={"v_pred": empty})[0] == "epsilon"
    assert "says that it predicts v_prediction; teacher.prediction_type=epsilon counts" in caplog.text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.x", "Flux"),
        ("edm_mean", "EDM noise levels"),
        ("lora_unet_down_blocks_0.lora_up.weight", "is a LoRA"),
        ("control_model.input_blocks.0.0.weight", "is a ControlNet"),
    ],
)
def test_other_models_are_refused_by_name(extra: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({extra: torch.zeros(1)}, file)
    with pytest.raises(UserError, match=rf"teacher\.base=.*other\.safetensors: .*{message}"):
        load_stable_diffusion(base=str(file), lora=None)


def test_incomplete_and_foreign_files(edited: Callable[..., Path], family_pipeline: Families, tmp_path: Path) -> None:
    folder = str(family_pipeline("sd1"))

    def refused(path: Path, match: str, config: str = folder) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load_stable_diffusion(base=str(path), lora=None, config=config)
        assert caught.value.__cause__ is None

    refused(edited(drop="cond_stage_model."), "no text encoder")
    refused(edited(drop="first_stage_model."), r"lacks weights of the auto-encoder.*; teacher\.vae takes")
    refused(edited(drop="model.diffusion_model.out.2"), r"lacks weights of the U-Net, conv_out\.weight")
    refused(edited(drop="cond_stage_model.transformer.text_model.final"), "lacks weights of the text encoder 1")
    inpainting = {"model__diffusion_model__input_blocks__0__0__weight": torch.zeros(16, 9, 3, 3)}
    refused(edited(**inpainting), "takes 9 channels; models for inpainting")
    refused(edited(drop="model.diffusion_model."), "no Stable Diffusion checkpoint")
    refused(edited(), "Stable Diffusion 1.x and teacher.config is SDXL", config=str(family_pipeline("sdxl")))
    refused(edited(), r"teacher\.config=.*no such folder", config="./gone")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    refused(broken, "cannot be read")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"")
    refused(pickle, r"\.ckpt files can run code when they are opened and are not read")


def test_refiner_is_not_the_base(family_pipeline: Families, tmp_path: Path) -> None:
    file = write_single_file(tmp_path / "refiner.safetensors", family_pipeline("sdxl"))
    tensors = {k: v for k, v in load_file(file).items() if not k.startswith("conditioner.embedders.0")}
    save_file({k.replace("embedders.1.model", "embedders.0.model"): v for k, v in tensors.items()}, file)
    with pytest.raises(UserError, match="refiner"):
        load_stable_diffusion(base=str(file), lora=None)
    copied = shutil.copytree(family_pipeline("sdxl"), tmp_path / "folder")
    config = json.loads((copied / "unet" / "config.json").read_text())
    config["projection_class_embeddings_input_dim"] -= 8
    (copied / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not the refiner"):
        load_stable_diffusion(base=str(copied), lora=None)


def test_a_style_base_needs_no_auto_encoder(family_pipeline: Families, tmp_path: Path) -> None:
    folder, other = family_pipeline("sd1"), family_pipeline("sd1", seed=1)
    whole = write_single_file(tmp_path / "style.safetensors", other)
    save_file(without(load_file(whole), "first_stage_model."), tmp_path / "novae.SAFETENSORS")
    shutil.rmtree(shutil.copytree(other, tmp_path / "folder") / "vae")
    wanted = load_stable_diffusion(base=str(folder), lora=None, style_base=str(whole), config=str(folder)).state_dict()
    for name in ("novae.SAFETENSORS", "folder"):
        arguments = {"base": str(folder), "lora": None, "style_base": str(tmp_path / name), "config": str(folder)}
        got = load_stable_diffusion(**arguments).state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(got[key], value) for key, value in wanted.items())
    save_file(without(load_file(whole), "model.diffusion_model.out.2"), tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"teacher\.style_base=.*lacks weights of the U-Net"):
        load_stable_diffusion(base=str(folder), style_base=str(tmp_path / "broken.safetensors"), config=str(folder))


def without(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(start)}


@pytest.fixture
def vaes(family_pipeline: Families, tmp_path: Path) -> dict[str, str]:
    """One auto-encoder in every form in which it may come."""
    pipeline = family_pipeline("sd1", seed=1)
    whole = write_single_file(tmp_path / "whole.safetensors", pipeline)
    tensors = {key: value for key, value in load_file(whole).items() if key.startswith("first_stage_model.")}
    bare = {key.removeprefix("first_stage_model."): value for key, value in tensors.items()}
    save_file(bare | {"model_ema.decay": torch.zeros(1)}, tmp_path / "bare.safetensors")
    save_file(tensors, tmp_path / "prefixed.safetensors")
    save_file({f"vae.{key}": value for key, value in bare.items()}, tmp_path / "vae.safetensors")
    diffusers = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    files = [whole, *(tmp_path / f"{name}.safetensors" for name in ("bare", "prefixed", "vae")), diffusers]
    return {path.stem: str(path) for path in files} | {"folder": str(pipeline / "vae"), "pipeline": str(pipeline)}


def test_an_auto_encoder_from_elsewhere(vaes: dict[str, str], family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline("sd1")
    file = write_single_file(tmp_path / "base.safetensors", folder)
    save_file(without(load_file(file), "first_stage_model."), tmp_path / "without.safetensors")
    shutil.rmtree(shutil.copytree(folder, tmp_path / "without") / "vae")
    wanted = load_stable_diffusion(base=str(family_pipeline("sd1", seed=1))).latent.state_dict()
    own = load_stable_diffusion(base=str(folder)).state_dict()
    pairs = [(base, vaes["bare"]) for base in (file, folder, tmp_path / "without")]
    for base, vae in [*pairs, *((tmp_path / "without.safetensors", vae) for vae in vaes.values())]:
        got = load_stable_diffusion(base=str(base), config=str(folder), vae=vae).state_dict()
        assert all(torch.equal(got[f"latent.{key}"], value) for key, value in wanted.items())
        assert all(torch.equal(value, own[key]) for key, value in got.items() if not key.startswith("latent."))
    for base in (tmp_path / "without.safetensors", tmp_path / "without"):
        with pytest.raises(UserError, match=r"teacher\.base=.*(teacher\.vae|lacks vae)"):
            load_stable_diffusion(base=str(base), config=str(folder))


def test_auto_encoders_that_do_not_fit(
    family_pipeline: Families, tiny_pipeline: Families, vaes: dict[str, str], tmp_path: Path
) -> None:
    folder = str(family_pipeline("sd1"))
    incomplete = shutil.copytree(vaes["folder"], tmp_path / "incomplete")
    weights = incomplete / "diffusion_pytorch_model.safetensors"
    save_file(without(load_file(weights), "decoder.conv_out"), weights, metadata={"format": "pt"})
    save_file(without(load_file(vaes["bare"]), "decoder.conv_out"), tmp_path / "cut.safetensors")
    save_file({"taesd.1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for vae, match in (
        (tmp_path / "cut.safetensors", "lacks weights of the auto-encoder"),
        (tmp_path / "other.safetensors", "lacks weights of the auto-encoder"),
        (incomplete, "auto-encoder's file lacks weights"),
        (tiny_pipeline(latent_channels=8), "gives 8 channels and the U-Net of teacher.base works on 4"),
        (tmp_path / "gone.safetensors", "no such file"),
        (tmp_path / "old.PT", r"\.PT files can run code"),
        (tmp_path, "cannot be read"),
        ("some/vae", "Give the folder of an auto-encoder or a pipeline"),
    ):
        with pytest.raises(UserError, match=rf"teacher\.vae=.*{match}"):
            load_stable_diffusion(base=folder, vae=str(vae), local_files_only=True)


def fp8(tensors: dict[str, Tensor], ending: str, *, rows: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint in 8 bits with a scale for each matrix (or each row of it), and the weights that it stands for."""
    stored, meant = {}, dict(tensors)
    for key, value in tensors.items():
        stored[key] = value
        if key.endswith(".weight") and value.ndim > 1 and "embedding" not in key:
            largest = value.abs().flatten(1).amax(dim=1) if rows else value.abs().max()
            scale = largest / 448
            spread = scale.reshape(-1, *[1] * (value.ndim - 1))
            stored[key] = (value / spread).to(torch.float8_e4m3fn)
            meant[key] = stored[key].float() * spread
            stored[key.removesuffix("weight") + ending] = scale
            stored[key.removesuffix("weight") + "scale_input"] = torch.ones(())
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, meant


@pytest.mark.parametrize(
    ("family", "ending", "rows"),
    [("sd1", "scale_weight", False), ("sd1", "weight_scale", True), ("sdxl", "weight_scale", False)],
)
def test_eight_bits_with_scales(
    family: str, ending: str, rows: bool, family_pipeline: Families, tmp_path: Path
) -> None:
    folder = family_pipeline(family)
    whole = load_file(write_single_file(tmp_path / "m.safetensors", folder))
    stored, meant = fp8(whole, ending, rows=rows)
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file(meant, tmp_path / "meant.safetensors")
    got, wanted = (
        load_stable_diffusion(base=str(tmp_path / f"{name}.safetensors"), config=str(folder)).state_dict()
        for name in ("fp8", "meant")
    )
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    ("ending", "shape", "scheme"),
    [
        ("weight_scale", (2, 2), r"the scale .* of shape \(2, 2\) belongs to a weight of shape"),
        ("weight_scale_2", (), "NVFP4"),
        ("weight_scale_inv", (1, 1), "scales of blocks"),
        ("weight_zero_point", (), "zero points"),
        ("weight.absmax", (4,), "bitsandbytes, 4 bits"),
        ("SCB", (4,), "bitsandbytes, 8 bits"),
        ("qweight", (4, 4), "GPTQ or AWQ"),
    ],
)
def test_other_quantisations_are_named(
    ending: str, shape: tuple[int, ...], scheme: str, edited: Callable[..., Path], family_pipeline: Families
) -> None:
    file = edited(**{f"model__diffusion_model__out__2__{ending.replace('.', '__')}": torch.zeros(shape)})
    with pytest.raises(UserError, match=rf"teacher\.base=.*quantised in a way that is not read.*{scheme}"):
        load_stable_diffusion(base=str(file), config=str(family_pipeline("sd1")))


def test_scales_in_a_folder_are_refused(family_pipeline: Families, tmp_path: Path) -> None:
    folder = shutil.copytree(family_pipeline("sd1"), tmp_path / "fp8")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.weight_scale": torch.ones(())}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"teacher\.base=.*fp8 with scales: conv_in\.weight_scale"):
        load_stable_diffusion(base=str(folder))


def test_a_file_that_lacks_what_the_conversion_needs(family_pipeline: Families, tmp_path: Path) -> None:
    folder = family_pipeline("sdxl")
    file = write_single_file(tmp_path / "m.safetensors", folder)
    save_file(without(load_file(file), "model.diffusion_model.label_emb."), file)
    with pytest.raises(UserError, match="lacks weights of the U-Net"):
        load_stable_diffusion(base=str(file), config=str(folder))


def test_what_two_models_predict(family_pipeline: Families, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The key is for the one of two that says nothing; the folder's scheduler says noise."""
    folder = family_pipeline("sdxl")
    file = write_single_file(tmp_path / "style.safetensors", family_pipeline("sdxl", seed=1))
    arguments: dict[str, Any] = {"base": str(folder), "style_base": str(file), "config": str(folder)}
    for wanted in (None, "v_prediction"):
        teacher = load_stable_diffusion(**arguments, prediction_type=wanted)
        assert teacher.schedule.prediction_type == "epsilon"
        assert teacher.style_schedule.prediction_type == (wanted or "epsilon")
    assert caplog.text.count("does not say whether it predicts noise or v") == 1
    assert load_stable_diffusion(base=str(folder), prediction_type="v_prediction").schedule.prediction_type == (
        "v_prediction"
    )
    other = str(family_pipeline("sdxl", seed=1))
    with pytest.raises(UserError, match=r"teacher\.prediction_type=epsilon: .*both do.*set it to null"):
        load_stable_diffusion(**arguments | {"style_base": other}, prediction_type="epsilon")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    del config["prediction_type"]
    silent = shutil.copytree(folder, tmp_path / "folder")
    (silent / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    caplog.clear()
    assert load_stable_diffusion(base=str(silent)).schedule.prediction_type == "epsilon"
    assert caplog.text.count("does not say whether it predicts noise or v") == 1
