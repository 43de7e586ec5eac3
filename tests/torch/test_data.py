"""MNIST from a wheel: a fixed split, a cache that may be missing or damaged, images as networks want them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness import data
from harness.data import DATASETS, as_images
from harness.data.mnist import cache_file
from harness.errors import UnknownName

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


def test_images_are_resized_normalised_and_repeated():
    white = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    x = as_images(white, 32)
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.full_like(x, (1 - 0.1307) / 0.3081))
    assert as_images(white, 28, channels=1).shape == (2, 1, 28, 28)


def test_normalised_digits_have_about_zero_mean_and_unit_deviation(cache):
    x = as_images(data.load().train.images_NCHW, 28)
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05


def test_an_unknown_dataset_is_answered_with_the_nearest():
    assert "mnist" in list(DATASETS)
    with pytest.raises(UnknownName, match="use mnist"):
        data.load("mnits")
