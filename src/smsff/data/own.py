"""Where a user's own photos lie."""

from __future__ import annotations

from pathlib import Path

OWN = "data/photos"
"""Below the folder in which the command is given."""


def own_photos() -> str | None:
    """`OWN` if it holds shards or pictures of any kind, else None: for ``${own_photos:}`` in a configuration."""
    if not Path(OWN).is_dir():
        return None
    from smsff.data.folder import is_shards  # imports torch, which a configuration alone does not need
    from smsff.data.images import walk

    return OWN if is_shards(Path(OWN)) or any(walk(OWN)) else None
