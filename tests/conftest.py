"""Shared by all tests: no network, one thread, fixed seeds, and tiny pipelines that are built once.

Libraries are imported where they are needed: the process that hands the tests to the workers needs none of them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from tiny_pipelines import TinySpec


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # half a million objects of the libraries: to look at them again and again is a sixth of the time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else some library reports at the end that they are still there


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_pipeline(**TinySpec fields)`` gives the folder of such a pipeline, built once per session."""
    from tiny_pipelines import TinySpec, build_pipeline

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
    from tiny_pipelines import build_family

    built: dict[tuple[str, int], Path] = {}

    def folder(family: str, *, seed: int = 0) -> Path:
        if (family, seed) not in built:
            built[family, seed] = build_family(tmp_path_factory.mktemp(family), family, seed=seed)  # type: ignore[arg-type]
        return built[family, seed]

    return folder


@pytest.fixture(scope="session")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``flow_pipeline("sd35" | "flux1" | "klein" | "zimage" | "qwen")``: a folder of such a pipeline, built once."""
    from tiny_flow import write_flow

    built: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in built:
            built[family] = write_flow(tmp_path_factory.mktemp(family), family)
        return built[family]

    return folder


@pytest.fixture(scope="session")
def tiny_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kohya-format LoRA file (attention, convolutions, text encoder) that fits `tiny_base`."""
    from tiny_pipelines import TinySpec, build_text_encoder, build_tokenizer, build_unet, write_kohya_lora

    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    spec = TinySpec()
    write_kohya_lora(path, build_unet(spec), build_text_encoder(spec, len(build_tokenizer(spec.tokens))))
    return path
