"""Mixtures: many data sets, one Pack per training step."""
