"""Dynamic filters: kernels that the features themselves predict, pixel by pixel."""

FAMILY = "dynamic filter"
