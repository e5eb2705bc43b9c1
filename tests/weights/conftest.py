from __future__ import annotations

from collections.abc import Iterator

import pytest
from file_server import FileServer, file_server


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as one:
        yield one
