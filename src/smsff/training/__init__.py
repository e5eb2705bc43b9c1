"""What surrounds the method in a run: optimiser, checkpoints, resume, processes, callbacks."""
