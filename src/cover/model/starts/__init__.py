"""Weights from other libraries, with a converter for each format."""
