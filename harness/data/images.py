"""Pixels as networks want them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data.base import Dataset
from harness.errors import HarnessError


def as_images(x_NCHW: Tensor, dataset: Dataset, image_size: int, channels: int = 3) -> Tensor:
    """Images of `dataset`, uint8 (N, C, H, W) -> normalised float32 (N, channels, image_size, image_size).

    Scaled to 0..1, resized bilinearly (antialiased when it shrinks), normalised by the dataset's mean and deviation;
    one channel is repeated. Raises HarnessError where several channels would have to become another number.
    """
    if dataset.channels not in (1, channels):
        raise HarnessError(
            f"images of {dataset.channels} channels are not what a network with {channels} takes",
            remedy=f"use a dataset of 1 or {channels} channels, or a backbone that takes {dataset.channels}",
        )
    scaled = x_NCHW.float() / 255
    if scaled.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (torch.tensor(values).reshape(-1, 1, 1) for values in (dataset.mean, dataset.deviation))
    return ((scaled - mean) / deviation).repeat(1, channels // dataset.channels, 1, 1)
