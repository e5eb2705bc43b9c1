"""Use a trained model: export it, load it, stylize pictures of any size."""
