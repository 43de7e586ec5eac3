"""MNIST from a wheel: a fixed split, a cache that may be missing or damaged, images as networks want them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from harness import data
from harness.data import DATASETS, Dataset, Split, as_images
from harness.data.mnist import cache_file
from harness.errors import HarnessError, UnknownName

DIGEST = "1efa5808cf0d478fa63a8a3671337d74ef8cf478565b1f03840adbff278e39c2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_file()


def test_the_split_is_always_the_same(cache):
    fresh, cached = data.load("mnist"), data.load("mnist")
    assert fresh.digest == cached.digest == DIGEST


def test_every_class_has_400_digits_to_train_on_and_100_to_test(cache):
    mnist = data.load()
    assert mnist.classes == 10
    assert mnist.train.images_NCHW.shape == (4000, 1, 28, 28)
    assert mnist.train.images_NCHW.dtype == torch.uint8
    assert mnist.train.labels_N.bincount().tolist() == [400] * 10
    assert mnist.test.labels_N.bincount().tolist() == [100] * 10
    assert len(mnist.test) == 1000
    assert mnist.train.labels_N[:64].unique().numel() == 10  # shuffled: the first batch knows all classes


def test_no_digit_is_in_both_parts(cache):
    mnist = data.load()
    train = {image.numpy().tobytes() for image in mnist.train.images_NCHW}
    test = {image.numpy().tobytes() for image in mnist.test.images_NCHW}
    assert not train & test


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"not a zip"])
def test_a_damaged_cache_is_replaced(cache, damage):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage)
    assert data.load().digest == DIGEST
    assert cache.stat().st_size > 100_000
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]  # nothing half-written stays


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert data.load().digest == DIGEST


def test_a_relative_cache_home_counts_as_unset(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file().is_relative_to(tmp_path / ".cache")


def test_reading_it_brings_no_scikit_learn(tmp_path):
    program = "import sys; from harness import data; data.load(); print('sklearn' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, env={"XDG_CACHE_HOME": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_images_are_resized_normalised_and_repeated(cache):
    white = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    mnist = data.load()
    x = as_images(white, mnist, 32)
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.full_like(x, (1 - 0.1307) / 0.3081))
    assert as_images(white, mnist, 28, channels=1).shape == (2, 1, 28, 28)


def test_normalised_digits_have_about_zero_mean_and_unit_deviation(cache):
    mnist = data.load()
    x = as_images(mnist.train.images_NCHW, mnist, 28)
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05


def test_digits_are_what_they_were_to_the_bit(cache):
    mnist = data.load()
    pixels = mnist.train.images_NCHW[:64]
    large = F.interpolate(pixels.float() / 255, size=(32, 32), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(as_images(pixels, mnist, 32), ((large - 0.1307) / 0.3081).repeat(1, 3, 1, 1))


def split(channels=3, labels=(0, 1, 2, 1), dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(labels), channels, 6, 6), generator=generator)
    return Split(pixels.to(dtype), torch.tensor(labels, dtype=torch.int64))


COLOUR = {"classes": 3, "channels": 3, "mean": (0.2, 0.4, 0.6), "deviation": (0.1, 0.2, 0.4)}


def test_colour_stays_three_channels_each_normalised_by_its_own():
    dataset = Dataset(split(), split(), **COLOUR)
    pixels = dataset.train.images_NCHW
    x = as_images(pixels, dataset, 6)
    assert x.shape == (4, 3, 6, 6)
    for channel, (mean, deviation) in enumerate(zip(dataset.mean, dataset.deviation, strict=True)):
        torch.testing.assert_close(x[:, channel], (pixels[:, channel] / 255 - mean) / deviation)


@pytest.mark.parametrize(("of", "into"), [(3, 1), (2, 3), (3, 6)])
def test_channels_are_neither_dropped_nor_made_up(of, into):
    dataset = Dataset(split(of), split(of), 3, of, (0.5,) * of, (0.2,) * of)
    with pytest.raises(HarnessError, match=f"images of {of} channels") as refusal:
        as_images(dataset.train.images_NCHW, dataset, 6, channels=into)
    assert f"1 or {into} channels" in refusal.value.remedy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": (0.2, 0.4)}, "3 channels has 2 values of mean"),
        ({"deviation": (0.1,)}, "3 channels has 1 values of deviation"),
        ({"deviation": (0.1, 0.0, 0.4)}, "divided"),
        ({"mean": (33.3, 40.0, 50.0)}, "scaled to 0..1"),
        ({"mean": (0.2, float("nan"), 0.6)}, "scaled to 0..1"),
        ({"channels": 1, "mean": (0.2,), "deviation": (0.1,)}, "images have 3 channels, and 1 are declared"),
        ({"classes": 2}, "2 classes has training labels from 0 to 2"),
        ({"test": split(labels=(0, -1))}, "test labels from -1 to 0"),
        ({"test": split(channels=1)}, "test images have 1 channels"),
        ({"train": split(labels=())}, "no training images"),
    ],
)
def test_a_dataset_that_does_not_fit_itself_is_refused_with_a_remedy(changes, says):
    with pytest.raises(HarnessError, match=re.escape(says)) as refusal:
        Dataset(**{"train": split(), "test": split(), **COLOUR, **changes})
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "images are float32 (2, 3, 4, 4)"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "images are uint8 (2, 4, 4)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "for 2 images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels are float32 (2,)"),
    ],
)  # fmt: skip
def test_what_are_no_images_or_labels_is_refused_with_a_remedy(images, labels, says):
    with pytest.raises(HarnessError, match=re.escape(says)) as refusal:
        Split(images, labels)
    assert "(N" in refusal.value.remedy


def test_an_unknown_dataset_is_answered_with_the_nearest():
    assert "mnist" in list(DATASETS)
    with pytest.raises(UnknownName, match="use mnist"):
        data.load("mnits")
