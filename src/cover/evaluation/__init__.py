"""Evaluation: metrics and statistics, with the protocol of every number."""
