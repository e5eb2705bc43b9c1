"""Flow-matching transformers: how each family is called, encodes prompts, and is loaded."""
