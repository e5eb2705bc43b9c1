"""The small world that ships: known styles, a teacher of them, its recipe, the demo and its controls."""
