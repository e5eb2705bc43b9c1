"""Use a trained model: export it, load it, stylize pictures of any size."""

MAX_STRENGTH = 1.5
"""Of a stylizer; the least is 0."""
