"""Colour images made from a seed: noise over stripes, whose direction and colour are the class."""

from __future__ import annotations

import torch

from harness.data.base import DATASETS, Dataset, Split

CLASSES = 4
SIDE = 16


@DATASETS.register("stripes")
def stripes() -> Dataset:
    """400 coloured 3x16x16 images of 4 classes, 300 to train on and 100 to test."""
    generator = torch.Generator().manual_seed(0)
    train, test = _split(300, generator), _split(100, generator)
    scaled = train.images_NCHW.float() / 255
    mean, deviation = (tuple(scores.tolist()) for scores in (scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))))
    return Dataset(train, test, CLASSES, channels=3, mean=mean, deviation=deviation)


def _split(count: int, generator: torch.Generator) -> Split:
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randint(128, (count, 3, SIDE, SIDE), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        lines = image[label % 3].T if label % 2 else image[label % 3]
        lines[::2] += 127
    return Split(images.to(torch.uint8), labels)
