"""Studies: grids of runs, compared and reported."""
