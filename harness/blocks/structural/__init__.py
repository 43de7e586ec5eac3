"""Structural ideas: other shapes of convolution in the place of one."""

FAMILY = "structural"
