"""The run directory: append, lock, resume, and read into pandas."""
