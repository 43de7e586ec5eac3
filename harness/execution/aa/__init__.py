"""``harness aa``: the same code against itself, many times, so that every verdict is known to be right or wrong."""
