"""Pixels as networks want them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

MEAN = 0.1307
DEVIATION = 0.3081
"""Of MNIST's 60,000 training images, scaled to 0..1: the figures in general use for it."""


def as_images(x_NCHW: Tensor, image_size: int, channels: int = 3) -> Tensor:
    """uint8 (N, 1, H, W) -> normalised float32 (N, channels, image_size, image_size).

    Scaled to 0..1, resized bilinearly (antialiased when it shrinks), normalised, and the one channel repeated.
    """
    scaled = x_NCHW.float() / 255
    if scaled.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False, antialias=True)
    return ((scaled - MEAN) / DEVIATION).repeat(1, channels, 1, 1)
