"""What a convolution reads cannot be negative: found where it is so, never claimed where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import fuse, swap
from harness.errors import Unsupported
from harness.models.nets import backbones
from harness.models.tracing import trace


class Around(nn.Module):
    """A ReLU, something, and the convolution that is asked about."""

    def __init__(self, between) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.between(self, F.relu(self.stem(x))))


KEPT = {
    "nothing": lambda net, x: x,
    "max pool": lambda net, x: F.max_pool2d(x, 2),
    "average pool": lambda net, x: F.avg_pool2d(x, 2),
    "sum": lambda net, x: x + x,
    "product": lambda net, x: x * torch.sigmoid(x),
    "scaled": lambda net, x: x * 0.5,
    "gate of anything": lambda net, x: F.relu(x) * torch.sigmoid(net.norm(x)),
    "in place": lambda net, x: net.norm(x).relu_(),
    "relu6": lambda net, x: F.relu6(net.norm(x)),
    "clamp": lambda net, x: net.norm(x).clamp(0, 1),
    "dropout": lambda net, x: F.dropout(x, 0.5, net.training),
    "parts": lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1),
}

LOST = {
    "norm": lambda net, x: net.norm(x),
    "norm in place of what was known": lambda net, x: x.sub_(1),
    "sum with anything": lambda net, x: x + net.norm(x),
    "difference": lambda net, x: x - 0.5,
    "shifted": lambda net, x: x + -0.5,
    "negated": lambda net, x: x * -1.0,
    "gelu": lambda net, x: F.gelu(net.norm(x)),
    "silu": lambda net, x: F.silu(net.norm(x)),
    "hard tanh": lambda net, x: F.hardtanh(net.norm(x)),
    "clamped below zero": lambda net, x: net.norm(x).clamp(-1, 1),
    "leaky": lambda net, x: F.leaky_relu(net.norm(x)),
    "parts with anything": lambda net, x: torch.cat([x[:, :2], net.norm(x)[:, 2:]], 1),
    "difference in place": lambda net, x: x.add_(x, alpha=-2),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("between", "known"), [*[(key, True) for key in KEPT], *[(key, False) for key in LOST]])
def test_signs_are_followed_through_operators(between, known, training, lived_in):
    net = lived_in(Around({**KEPT, **LOST}[between]))
    assert trace(net, training=training).convs["conv"].non_negative is known
    assert not trace(net, training=training).convs["stem"].non_negative
    with torch.no_grad():  # the claim is true
        seen = []
        net.train(training).conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].min().item()))
        net(torch.randn(4, 3, 8, 8))
    assert (seen[0] >= 0) is known


@pytest.mark.parametrize(
    ("name", "unknown"), [("resnet18", 1), ("diracnet18", 1), ("plain_a0", 1), ("convnext_atto", 40)]
)
def test_networks(name, unknown):
    uses = trace(backbones.build(name), training=True).convs.values()
    assert sum(not use.non_negative for use in uses) == unknown


def test_a_layer_whose_input_may_be_negative_is_refused_for_a_block_that_needs_it_otherwise(lived_in):
    with pytest.raises(Unsupported, match="layer conv: block rm fuses exactly for non-negative input") as refused:
        swap(Around(LOST["norm"]), "rm")
    assert "carry: prelu" in refused.value.remedy
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for between, options in ((LOST["norm"], {"carry": "prelu"}), (KEPT["max pool"], {})):
        net = lived_in(swap(Around(between), "rm", **options)).double().eval()
        torch.testing.assert_close(fuse(net)(x), net(x), rtol=1e-12, atol=1e-12)
