from __future__ import annotations

from pathlib import Path

import pytest
from network_files import write_alexnet, write_art_inception, write_clip, write_reference_inception


@pytest.fixture(scope="session")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_alexnet(tmp_path_factory.mktemp("alexnet") / "alexnet.pth")


@pytest.fixture(scope="session")
def art_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_art_inception(tmp_path_factory.mktemp("art") / "art.pth")


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference_inception(tmp_path_factory.mktemp("inception") / "inception.pth")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))
