"""What runs in a worker process: one task in, records out. torch is imported inside of it alone."""
