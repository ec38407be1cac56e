"""From records to numbers and pictures: one run, statistics, claims, plots, the report."""
