"""Which files of a pipeline are read, by listings as the hub has them, and what a folder lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smsff.weights.pipeline import folder_fault, folder_files, needed_files

TOKENIZER = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
SETTINGS = [
    *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"),
    *(f"tokenizer/{name}" for name in TOKENIZER),
    *("unet/config.json", "vae/config.json"),
]
UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
SD15 = [
    *SETTINGS,
    *(f"text_encoder/{n}" for n in ("model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")),
    *("text_encoder/pytorch_model.fp16.bin", "safety_checker/config.json", "safety_checker/model.safetensors"),
    *(f"{UNET}.{ending}" for ending in ("bin", "fp16.bin", "fp16.safetensors", "non_ema.safetensors", "safetensors")),
    *(f"{VAE}.{ending}" for ending in ("bin", "fp16.safetensors", "safetensors")),
    *(".gitattributes", "README.md", "feature_extractor/preprocessor_config.json", "v1-inference.yaml"),
    *("safety_checker/pytorch_model.bin", "v1-5-pruned-emaonly.safetensors", "v1-5-pruned.ckpt"),
]


def test_one_form_of_each_weight_and_no_other_part() -> None:
    weights = ["text_encoder/model.safetensors", f"{UNET}.safetensors", f"{VAE}.safetensors"]
    assert needed_files(SD15) == sorted([*SETTINGS, *weights])


def test_the_variant_where_there_is_one() -> None:
    listing = [name for name in SD15 if name != "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert set(needed_files(listing, variant="fp16")) - set(SETTINGS) == {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_pickles_only_without_safetensors_and_both_encoders_of_sdxl() -> None:
    listing = ["unet/config.json", "unet/diffusion_pytorch_model.bin", "text_encoder_2/config.json"]
    listing += ["text_encoder_2/model.safetensors", "tokenizer_2/vocab.json", "text_encoder_2/openvino_model.bin"]
    listing += ["vae_1_0/diffusion_pytorch_model.safetensors", "unet/model.onnx"]
    assert needed_files(listing) == [
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
    ]


def test_a_transformer_its_three_text_encoders_and_the_template_of_chats() -> None:
    needed = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/chat_template.jinja"]
    needed += ["text_encoder_3/config.json", "text_encoder_3/model.safetensors", "tokenizer_3/spiece.model"]
    needed += ["transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"]
    needed += ["transformer/diffusion_pytorch_model.safetensors.index.json"]
    others = ["flux-2-klein-base-4b.safetensors", "transformer/model.onnx", "assets/teaser.png", "README.md"]
    assert needed_files([*needed, *others]) == sorted(needed)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        (
            None,
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        ("fp16", ["model-00001-of-00001.fp16.safetensors", "model.safetensors.index.fp16.json"]),
        ("fp16", ["model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"]),
    ],
)
def test_split_weights_with_their_index(variant: str | None, names: list[str]) -> None:
    listing = [f"text_encoder/{name}" for name in ("config.json", *names)]
    assert needed_files([*listing, "text_encoder/pytorch_model.bin.index.json"], variant=variant) == sorted(listing)


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "pipeline"))


def test_a_whole_folder_has_no_fault(folder: Path) -> None:
    assert folder_fault(folder) is None
    assert {name.partition("/")[0] for name in folder_files(folder)} == {
        *("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
    }
    (folder / "model_index.json").unlink()
    assert folder_fault(folder) is None


def test_the_index_says_which_parts_there_are(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_2": ["transformers", "CLIPTextModel"], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert folder_fault(folder) == "the part text_encoder_2 is missing"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def split(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def split_with_index(folder: Path) -> None:
    split(folder)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda f: shutil.rmtree(f / "vae"), "the part vae is missing"),
        (lambda f: (f / "unet/config.json").unlink(), "unet/config.json is missing"),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler is empty"),
        (lambda f: (f / "text_encoder/model.safetensors").unlink(), "text_encoder has no weights"),
        (
            lambda f: cut(f / "unet/diffusion_pytorch_model.safetensors"),
            "unet: diffusion_pytorch_model.safetensors is not",
        ),
        (lambda f: split(f / "text_encoder"), "text_encoder: the index of its split weights is missing"),
        (lambda f: split_with_index(f / "text_encoder"), "text_encoder: model-00002-of-00002.safetensors is missing"),
    ],
)
def test_what_a_folder_lacks_is_named(folder: Path, harm: Callable[[Path], None], fault: str) -> None:
    harm(folder)
    assert (folder_fault(folder) or "").startswith(fault)


def test_an_auto_encoder_alone_or_in_a_pipeline(tiny_base: Path, tmp_path: Path) -> None:
    file = "diffusion_pytorch_model.safetensors"
    assert needed_files(SD15, part="vae") == ["vae/config.json", f"vae/{file}"]
    assert needed_files(["README.md", "config.json", file, "x.ckpt"], part="vae") == ["config.json", file]
    assert needed_files(["README.md"], part="vae") == []
    for folder in (tiny_base, tiny_base / "vae"):
        assert folder_fault(folder, part="vae") is None
        assert [path.name for path in folder_files(folder, part="vae").values()] == ["config.json", file]
    assert folder_fault(tmp_path, part="vae") == "it has no auto-encoder"
    copied = shutil.copytree(tiny_base / "vae", tmp_path / "vae")
    (copied / file).write_bytes((copied / file).read_bytes()[:-1])
    assert "is not whole" in (folder_fault(copied, part="vae") or "")
    (copied / file).unlink()
    assert folder_fault(copied, part="vae") == "it has an auto-encoder without weights"
