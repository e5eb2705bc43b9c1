"""What a file of a stranger may hold: an object that does something when it is unpickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Payload:
    """Makes the folder ``mark`` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)
