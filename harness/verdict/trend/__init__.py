"""Change points over a folder of runs: what changed, when, and whether somebody has accepted it."""
