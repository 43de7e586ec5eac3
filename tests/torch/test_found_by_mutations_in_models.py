"""What no test noticed when it was broken on purpose (tests/mutations/): each is a promise that the code makes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from harness import fuse, swap
from harness.devices.fake import FakeDevice
from harness.errors import HarnessError
from harness.measuring import turns
from harness.measuring.metric import Step
from harness.measuring.turns import FEWEST_PASSES, TimedStep, interleave
from harness.memory import StorageTracker
from harness.models.layers import is_depthwise
from harness.records import Budget


class Both(nn.Module):
    """Gives its caller a convolution's output, and what the norm makes of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y, self.norm(y)


def test_a_norm_stays_where_the_caller_takes_the_convolutions_output_too():
    """Folded, the first of the two outputs would be the second one."""
    with pytest.raises(HarnessError, match="nothing in this Both can be fused"):
        fuse(Both())


def test_a_convolution_of_one_channel_is_not_depthwise():
    """One group of one channel: `depthwise: false` must not leave out the first layer of a network of grey images."""
    assert not is_depthwise(nn.Conv2d(1, 1, 3))
    assert not is_depthwise(nn.Conv2d(1, 8, 3))
    assert is_depthwise(nn.Conv2d(2, 2, 3, groups=2))


def test_padding_in_words_is_kept():
    """A network's "same" and "valid" are zeros on each side, and its maps keep their sizes."""
    for padding, dilation in (("same", 1), ("same", 2), ("valid", 1), ("valid", 2)):
        conv = nn.Conv2d(4, 4, 3, padding=padding, dilation=dilation)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), conv)
        x = torch.randn(2, 3, 12, 12)
        assert swap(model, "repvgg")(x).shape == model(x).shape


def test_a_storage_that_is_resized_to_less_counts_with_less():
    """As sharded and offloading trainings do: the tensor stays, its memory is given back."""
    with StorageTracker() as tracker:
        x = torch.zeros(2048, dtype=torch.uint8)
        x.untyped_storage().resize_(512)
        view = x.detach()
        assert tracker.current == 512
        del x, view
        assert tracker.current == 0


class Stalling:
    """A clock: two steps of a tenth of a second, and then a hundred seconds for each."""

    def __init__(self):
        self.device, self.waited, self.now, self.steps = FakeDevice(), 0.0, 0.0, 0

    def time(self, step, repeats=1, flush=False):
        self.steps += 1
        seconds = repeats * (0.1 if self.steps <= 2 else 100.0)
        self.now += seconds
        return seconds


def test_the_pass_back_is_made_however_slow_the_first_one_was(monkeypatch):
    """One pass alone would leave whatever drifted in the ratio of its two ends."""
    clock = Stalling()
    monkeypatch.setattr(turns, "monotonic", lambda: clock.now)
    seat = TimedStep(Step("latency", "train", "s", lambda: None), clock, nullcontext, 1.0)
    interleave([seat], Budget(), lambda *_: None, lambda _: None)
    assert len(seat.samples.seconds) == FEWEST_PASSES
