"""Experiments of several runs: the demo, an added head, transfers and studies, with their reports."""
