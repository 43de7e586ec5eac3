"""What a dataset is: a fixed split of images and labels, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness.registry import Registry


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images_NCHW: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split that never change, and the number of classes."""

    train: Split
    test: Split
    classes: int

    @property
    def digest(self) -> str:
        """SHA-256 over all pixels and labels in order: the same for the same split."""
        sha = hashlib.sha256()
        for tensor in (self.train.images_NCHW, self.train.labels_N, self.test.images_NCHW, self.test.labels_N):
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()


DATASETS: Registry[Callable[[], Dataset]] = Registry("dataset")
