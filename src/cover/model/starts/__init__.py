"""Weights that others made: a converter for each foreign format."""
