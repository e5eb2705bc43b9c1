"""What happens around the training step: pictures, progress, stopping, the summary of a run."""
