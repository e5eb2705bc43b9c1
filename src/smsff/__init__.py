"""smsff: learn a one-pass stylizer from a text-to-image model, without a single style image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smsff.stylize.stylizer import load_stylizer

__version__ = "0.1.0"
__all__ = ["__version__", "load_stylizer"]


def __getattr__(name: str) -> Any:
    """Import `load_stylizer` when it is asked for, so that `import smsff` does not import torch."""
    if name == "load_stylizer":
        from smsff.stylize.stylizer import load_stylizer

        return load_stylizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
