"""A new head for a released model: recipe, training and evaluation."""
