"""Many data sets in one batch per step."""
