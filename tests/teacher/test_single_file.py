from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import original_names, write_single_file
from torch import Tensor

from smsff.errors import UserError
from smsff.teacher import single_file
from smsff.teacher.components import build_schedule, find_config
from smsff.teacher.condition import Condition
from smsff.teacher.families import family_config
from smsff.teacher.pipeline_config import Family
from smsff.teacher.skeleton import skeleton_texts, skeleton_unet, skeleton_vae
from smsff.teacher.source import Source
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
    monkeypatch.setattr(single_file, "_header", lambda source: ({k: tuple(v.shape) for k, v in names.items()}, {}))
    assert find_config(Source(str(file), "teacher.base")) == published


def test_what_the_file_says_of_its_noise(
    family_pipeline: Families, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "_parts", lambda config: [])  # the weights are narrower than the published ones

    def schedule(family: str, **options: object) -> tuple[str, float]:
        file = write_single_file(tmp_path / "m.safetensors", family_pipeline(family), **options)  # type: ignore[arg-type]
        built = build_schedule(find_config(Source(str(file), "teacher.base")))
        return built.prediction_type, built.alphas_cumprod[-1].item()

    last = schedule("sdxl")[1]
    assert schedule("sdxl") == ("epsilon", pytest.approx(0.0047, abs=1e-4))
    empty = torch.zeros(0)
    assert schedule("sdxl", extra={"v_pred": empty}) == ("v_prediction", last)
    zero = schedule("sdxl", extra={"v_pred": empty, "ztsnr": empty})
    assert zero[0] == "v_prediction"
    assert 0 < zero[1] < 1e-6
    assert schedule("sdxl", metadata={"modelspec.prediction_type": "v"})[0] == "v_prediction"
    assert not caplog.text
    assert schedule("sd2")[0] == "v_prediction"
    assert "does not say whether it predicts noise or v" in caplog.text
    assert schedule("sd2", metadata={"modelspec.prediction_type": "epsilon"})[0] == "epsilon"


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
    refused(edited(drop="first_stage_model."), "lacks weights of the auto-encoder")
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
