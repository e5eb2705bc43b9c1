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
    from smsff.data.images import PICTURE_EXTENSIONS, ending, walk

    root = Path(OWN)
    return OWN if is_shards(root) or any(ending(name) in PICTURE_EXTENSIONS for name in walk(root)) else None
