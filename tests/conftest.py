"""Shared by all tests: no network, one thread, fixed seeds, and tiny pipelines that are built once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before the libraries are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# For the commands that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1] / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_flow import write_flow
from tiny_pipelines import (
    TinySpec,
    build_family,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    write_kohya_lora,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_pipeline(**TinySpec fields)`` gives the folder of such a pipeline, built once per session."""
    built: dict[TinySpec, Path] = {}

    def folder(**fields: object) -> Path:
        spec = TinySpec(**fields)  # type: ignore[arg-type]
        if spec not in built:
            built[spec] = build_pipeline(tmp_path_factory.mktemp("pipeline"), spec)
        return built[spec]

    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_pipeline: Callable[..., Path]) -> Path:
    """A pipeline folder shaped like the bundled teacher (8 latent channels, f = 2, 16 tokens), at reduced width."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def family_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``family_pipeline("sd1" | "sd2" | "sdxl", seed=0)``: a folder of the published structure at reduced width."""
    built: dict[tuple[str, int], Path] = {}

    def folder(family: str, *, seed: int = 0) -> Path:
        if (family, seed) not in built:
            built[family, seed] = build_family(tmp_path_factory.mktemp(family), family, seed=seed)  # type: ignore[arg-type]
        return built[family, seed]

    return folder


@pytest.fixture(scope="session")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``flow_pipeline("sd35" | "flux1" | "klein" | "zimage" | "qwen")``: a folder of such a pipeline, built once."""
    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            built[family] = write_flow(tmp_path_factory.mktemp(family), family)
        return built[family]

    return folder


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kohya-format LoRA file (attention, convolutions, text encoder) that fits `tiny_base`."""
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    spec = TinySpec()
    write_kohya_lora(path, build_unet(spec), build_text_encoder(spec, len(build_tokenizer(spec.tokens))))
    return path
