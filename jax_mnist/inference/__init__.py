"""A finished run in use: predictions, pictures of digits, and export."""
