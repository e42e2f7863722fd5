"""The model: a backbone and its classifiers."""
