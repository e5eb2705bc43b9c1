"""Where to compute, as a command or a key says it."""

from __future__ import annotations

import torch

from smsff.errors import UserError


def chosen_device(choice: str, key: str = "--device ") -> torch.device:
    """``cpu``, ``cuda``, or ``auto``: a GPU if there is one. `key`: option or key up to its value, for the message."""
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UserError(f"{key}cuda: torch finds no CUDA device")
    return torch.device("cuda" if choice != "cpu" and there else "cpu")
