"""Training as pure functions: no file, no print and no clock in here."""
