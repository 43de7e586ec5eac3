"""What a dataset is: a fixed split of images and labels, and how its pixels are distributed; by name.

A dataset is one file of this folder, a function without arguments whose first line says what it is:

    @DATASETS.register("mnist")
    def mnist() -> Dataset:
        \"\"\"5,000 digits 1x28x28.\"\"\"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.records import Json
from harness.registry import Registry


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,). HarnessError for anything else."""

    images_NCHW: Tensor
    labels_N: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images_NCHW, self.labels_N
        if images.ndim != 4 or images.dtype != torch.uint8:
            found = f"{_dtype(images)} {tuple(images.shape)}"
            raise HarnessError(f"a dataset's images are {found}", remedy="give uint8 (N, C, H, W), values 0 to 255")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            found = f"{_dtype(labels)} {tuple(labels.shape)} for {len(images)} images"
            raise HarnessError(f"a dataset's labels are {found}", remedy="give int64 (N,), a class for every image")

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split that never change, the number of classes, and what the pixels are normalised by.

    mean, deviation: one value per channel, of the training images scaled to 0..1.

    Raises HarnessError where these do not fit each other or the images.
    """

    train: Split
    test: Split
    classes: int
    channels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "deviation"):
            self._check_distribution(name, getattr(self, name))
        if min(self.deviation) == 0:
            raise HarnessError(
                f"a dataset's deviation is {self.deviation}: pixels are divided by it",
                remedy="leave out a channel that never changes, or give it deviation 1",
            )
        for name, split in (("training", self.train), ("test", self.test)):
            self._check_split(name, split)

    def _check_distribution(self, name: str, values: tuple[float, ...]) -> None:
        if len(values) != self.channels:
            raise HarnessError(
                f"a dataset of {self.channels} channels has {len(values)} values of {name}",
                remedy=f"give as many values of {name} as there are channels",
            )
        if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
            raise HarnessError(
                f"a dataset's {name} is {values}", remedy=f"give the {name} of pixels that are scaled to 0..1"
            )

    def _check_split(self, name: str, split: Split) -> None:
        if not len(split):
            raise HarnessError(f"a dataset has no {name} images", remedy="give it some")
        channels = split.images_NCHW.shape[1]
        if channels != self.channels:
            raise HarnessError(
                f"a dataset's {name} images have {channels} channels, and {self.channels} are declared",
                remedy=f"declare channels={channels}, or give images (N, {self.channels}, H, W)",
            )
        least, most = split.labels_N.min().item(), split.labels_N.max().item()
        if least < 0 or most >= self.classes:
            raise HarnessError(
                f"a dataset of {self.classes} classes has {name} labels from {least} to {most}",
                remedy=f"give labels from 0 to {self.classes - 1}",
            )

    @property
    def digest(self) -> str:
        """SHA-256 over all pixels and labels in order: the same for the same split."""
        sha = hashlib.sha256()
        for tensor in (self.train.images_NCHW, self.train.labels_N, self.test.images_NCHW, self.test.labels_N):
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()


DATASETS: Registry[Callable[[], Dataset]] = Registry("dataset")


def declaration(name: str) -> dict[str, Json]:
    """What planning must know of a dataset without torch, as plain JSON; it is made for that. Raises UnknownName."""
    made = DATASETS[name]
    if not made.__doc__:
        raise TypeError(f"dataset {name} does not say what it is: write a line of documentation into its function")
    data = made()
    return {
        "what": made.__doc__.strip().splitlines()[0],
        "channels": data.channels,
        "classes": data.classes,
    }


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
