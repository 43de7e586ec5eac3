"""Dynamic convolutions: kernels of its own for every sample."""

FAMILY = "dynamic"
