"""Studies: grids of training runs, their comparison and their report."""
