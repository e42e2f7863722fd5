"""Numbers with their protocol: views, metrics, evaluate."""
