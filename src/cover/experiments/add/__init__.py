"""A new head for a released model: what it gains from the model, and what it costs the heads that are there."""
