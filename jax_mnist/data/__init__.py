"""From files to arrays: data sets by name or from a folder, their splits, and a cache."""
