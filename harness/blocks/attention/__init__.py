"""Attentions: what rescales the output of a convolution, by itself."""

FAMILY = "attention"
