"""The plain convolution, which every other block is compared with."""

FAMILY = "plain"
