"""Photos and captions for training; the bundled sample photos; known styles."""
