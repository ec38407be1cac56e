"""From files to arrays: the data sets, their splits, and how files are written and locked."""
