"""Small generated data sets, written in the real data sets' own layouts."""
