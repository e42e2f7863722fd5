"""Whole experiments: the demo, a new head, transfers, and studies with their reports."""
