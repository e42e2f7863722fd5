"""Many data sets as one Pack per step: schedule, Pack, loader."""
