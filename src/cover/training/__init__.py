"""The training loop: recipes, steps, optimizers, checkpoints, logs and guards."""
