"""What a user does with a checkpoint."""
