"""One run: configuration, model and optimizer, the loop, evaluation, checkpoints, W&B."""
