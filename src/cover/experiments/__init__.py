"""Whole stories told with the commands below: the demo and its report."""
