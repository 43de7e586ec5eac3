"""Re-parameterized blocks: several branches while training, one convolution once fused."""

FAMILY = "re-parameterized"
