"""A run on the host: its folder, the loop, checkpoints, the record, everything that it writes."""
