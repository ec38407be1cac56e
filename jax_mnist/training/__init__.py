"""Training as pure functions: nothing here reads files, prints or uses the clock."""
