"""Where a user's own photos lie."""

from __future__ import annotations

from pathlib import Path

OWN = "data/photos"
"""Below the folder in which the command is given."""


def own_photos() -> str | None:
    """`OWN` if there are pictures of any kind in or below it, else None: for ``${own_photos:}`` in a configuration."""
    if not Path(OWN).is_dir():
        return None
    from smsff.data.images import walk  # imports torch, which a configuration alone does not need

    return OWN if any(walk(OWN)) else None
