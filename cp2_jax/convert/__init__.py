"""Foreign checkpoints in and out."""
