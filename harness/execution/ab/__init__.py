"""``harness ab``: two revisions measure one suite at the same time, in processes that take turns."""
