"""The loop and what keeps it alive: recipe, train, optimizer, checkpoint."""
