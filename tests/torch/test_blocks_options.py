"""What RepVGG, ACB and DBB leave open: each choice is its reference's equation, trained and fused."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks.reparam.dbb import DBB
from harness.errors import UnknownName, Unsupported
from harness.memory import saved_bytes


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def normed(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """The definition: by the batch's statistics in training, else by the running ones."""
    mean, variance = (
        (y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) if bn.training else (bn.running_mean, bn.running_var)
    )
    c = (slice(None), None, None)
    return (y - mean[c]) / torch.sqrt(variance[c] + bn.eps) * bn.weight[c] + bn.bias[c]


def named(block: nn.Module) -> dict[str, nn.Module]:
    return {branch.branch_name: branch for branch in block.branches}


# RepVGG


@pytest.mark.parametrize("channels", [4, 48])
@pytest.mark.parametrize("training", [True, False])
def test_squeeze_and_excitation_is_the_references(training, channels, lived_in):
    block = lived_in(blocks.create("repvgg", channels, channels, se=True)).double().train(training)
    plain = blocks.create("repvgg", channels, channels).double().train(training)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("after")})
    x = torch.randn(3, channels, 5, 9, dtype=torch.float64)  # the authors' code pools with the width: it fails here
    y = plain(x)
    squeezed = max(1, channels // 16)
    first, second = block.after.fc1, block.after.fc2
    assert first.weight.shape == (squeezed, channels, 1, 1)
    assert second.weight.shape == (channels, squeezed, 1, 1)
    wanted = torch.empty_like(y)
    for n in range(3):
        mean = torch.stack([y[n, c].sum() / 45 for c in range(channels)])
        inside = (first.weight.flatten(1) @ mean + first.bias).clamp(min=0)
        gate = 1 / (1 + torch.exp(-(second.weight.flatten(1) @ inside + second.bias)))
        wanted[n] = y[n] * gate[:, None, None]
    assert relative(block(x), wanted) <= 1e-12


@pytest.mark.parametrize(("name", "options"), [("repvgg", {}), ("mobileone", {"branches": 2})])
@pytest.mark.parametrize(("c_out", "stride", "groups", "padding"), [(16, 1, 1, None), (32, 2, 4, 2), (16, 1, 16, 0)])
def test_squeeze_and_excitation_stays_behind_the_fused_convolution(
    name, options, c_out, stride, groups, padding, lived_in
):
    block = blocks.create(name, 16, c_out, 3, stride, groups, padding=padding, se=True, **options)
    lived_in(block).double().eval()
    fused = block.fused()
    x = torch.randn(2, 16, 7, 10, dtype=torch.float64)
    assert relative(fused(x), block(x)) <= 1e-12
    assert [label for label, _ in fused.named_children()] == ["conv", "after"]
    assert not {id(p) for p in fused.parameters()} & {id(p) for p in block.parameters()}
    with torch.no_grad():
        fused.after.fc2.bias.add_(1)  # the block keeps its own
    assert relative(fused(x), block(x)) > 1e-3


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_custom_l2_is_the_references_sum(k, groups, lived_in):
    block = lived_in(blocks.create("repvgg", 4, 8, k, 2, groups)).double()
    square, point = named(block)["k x k"], named(block)["1x1"]
    total = torch.zeros((), dtype=torch.float64)
    for o in range(8):
        t = [each.bn.weight[o].item() / (each.bn.running_var[o].item() + 1e-5) ** 0.5 for each in (square, point)]
        for i in range(4 // groups):
            for row, column in product(range(k), range(k)):
                tap = square.conv.weight[o, i, row, column]
                if (row, column) == (k // 2, k // 2):
                    total = total + (tap * t[0] + point.conv.weight[o, i, 0, 0] * t[1]) ** 2 / (t[0] ** 2 + t[1] ** 2)
                else:
                    total = total + tap**2
    loss = block.custom_l2()
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    weights = block.custom_l2_weights()
    assert [id(w) for w in weights] == [id(square.conv.weight), id(point.conv.weight)]
    for found, wanted in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    block.custom_l2().backward()  # the norms' weights are constants of it
    assert {label for label, p in block.named_parameters() if p.grad is not None} == {
        label for label, p in block.named_parameters() if any(p is weight for weight in weights)
    }


def test_custom_l2_decays_what_the_fused_kernel_has(lived_in):
    """With equal scales its centre term is half the fused centre's square, over the scale's."""
    block = blocks.create("repvgg", 4, 6).double()
    lived_in(block)
    square, point = named(block)["k x k"], named(block)["1x1"]
    point.bn.load_state_dict(square.bn.state_dict())
    t = square.bn.weight / (square.bn.running_var + square.bn.eps).sqrt()
    weight = block.fused().weight / t[:, None, None, None]
    centre, whole = weight[:, :, 1, 1].square().sum(), weight.square().sum()
    assert block.custom_l2().item() == pytest.approx((whole - centre / 2).item(), rel=1e-12)


# ACB


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("k", "padding", "dilation"),
    [(3, 0, 1), (3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (5, 3, 1), (7, 3, 1), (3, 1, 2), (5, 2, 3), (3, 5, 2)],
)
def test_acb_with_any_padding_is_the_references(k, padding, dilation, stride, groups, lived_in):
    block = lived_in(blocks.create("acb", 8, 8, k, stride, groups, dilation, padding=padding)).double().eval()
    x = torch.randn(2, 8, 16, 19, dtype=torch.float64)
    square, vertical, horizontal = (named(block)[name] for name in ("k x k", "k x 1", "1 x k"))
    assert [branch.conv.kernel_size for branch in (square, vertical, horizontal)] == [(k, k), (k, 1), (1, k)]

    def conv(branch: nn.Module, x: Tensor, rows: int, columns: int) -> Tensor:
        y = F.conv2d(x, branch.conv.weight, None, stride, (rows, columns), dilation, groups)
        return normed(branch.bn, y)

    half = dilation * (k // 2)
    if padding < half:
        crop = half - padding
        cross = [
            conv(vertical, x[:, :, :, crop:-crop], padding, 0),
            conv(horizontal, x[:, :, crop:-crop, :], 0, padding),
        ]
    else:
        cross = [conv(vertical, x, padding, padding - half), conv(horizontal, x, padding - half, padding)]
    parts = [conv(square, x, padding, padding), *cross]
    for branch, wanted in zip((square, vertical, horizontal), parts, strict=True):
        assert branch(x).shape == wanted.shape == parts[0].shape
        assert relative(branch(x), wanted) <= 1e-12
    fused = block.fused()
    assert fused.padding == (padding, padding)
    found, wanted = fused(x), sum(parts)
    assert relative(found, wanted) <= 1e-12
    for edge in (0, -1):
        assert relative(found[:, :, edge], wanted[:, :, edge]) <= 1e-12
        assert relative(found[..., edge], wanted[..., edge]) <= 1e-12


@pytest.mark.parametrize(
    ("gamma_init", "square", "cross"), [("one", 1.0, 1.0), ("third", 1 / 3, 1 / 3), ("square", 1.0, 0.0)]
)
def test_acbs_first_gammas(gamma_init, square, cross):
    gammas = {
        name: branch.bn.weight for name, branch in named(blocks.create("acb", 4, 6, gamma_init=gamma_init)).items()
    }
    for name, wanted in {"k x k": square, "k x 1": cross, "1 x k": cross}.items():
        assert torch.equal(gammas[name], torch.full((6,), wanted))


def test_acb_has_zeros_around_the_map_only():
    with pytest.raises(UnknownName, match="padding_mode"):
        blocks.create("acb", 4, 4, padding_mode="reflect")


# DBB

SWITCHES = DBB.at_least_one
OFF = dict.fromkeys(SWITCHES, False)
EXTRA = ("twin", "concat", "asymmetric")

PLACES = [
    # c_in, c_out, k, stride, groups, dilation, padding
    (6, 6, 3, 1, 1, 1, None),
    (6, 9, 5, 2, 3, 2, None),
    (4, 5, 3, 2, 1, 1, 0),
    (6, 6, 3, 1, 2, 1, 3),
    (6, 6, 5, 1, 6, 1, None),
    (6, 6, 3, 2, 6, 2, 1),
    (3, 6, 1, 1, 3, 1, None),
]


class Paper:
    """DBB's branches by the reference's equations, in plain operations."""

    def __init__(self, block: nn.Module, place: tuple) -> None:
        self.named = named(block)
        self.c_in, self.c_out, self.k, self.stride, self.groups, self.dilation, padding = place
        self.same = self.dilation * (self.k // 2)
        self.padding = self.same if padding is None else padding
        self.depthwise = self.groups == self.c_in == self.c_out

    def conv(self, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        rows, columns = padding
        x = F.pad(x, [columns, columns, rows, rows])
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, self.groups)

    def square(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.conv(x, weight, (self.padding, self.padding))

    def rimmed(self, bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
        (n, c, h, w), p = y.shape, self.padding
        c_ = (slice(None), None, None)
        zero = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        out = zero[c_].expand(n, c, h + 2 * p, w + 2 * p).clone()
        out[:, :, p : p + h, p : p + w] = normed(bn, y)
        return out

    def mean(self, y: Tensor) -> Tensor:
        d, s = self.dilation, self.stride
        size = [(side - d * (self.k - 1) - 1) // s + 1 for side in y.shape[2:]]
        return F.unfold(y, self.k, d, 0, s).view(*y.shape[:2], self.k**2, *size).mean(2)

    def origin(self, x: Tensor) -> Tensor:
        branch = self.named.pop("origin")
        return normed(branch.bn, self.square(x, branch.conv.weight))

    def twin(self, x: Tensor) -> Tensor:
        branch = self.named.pop("twin")
        return normed(branch.bn, self.square(x, branch.conv.weight))

    def point(self, x: Tensor) -> Tensor:
        branch, beyond = self.named.pop("1x1"), self.padding - self.same
        return normed(branch.bn, self.conv(x, branch.conv.weight, (beyond, beyond)))

    def chain(self, x: Tensor) -> Tensor:
        branch = self.named.pop("1x1-kxk")
        first = branch.first.conv.weight.clone()
        assert first.shape[0] == (2 * self.c_in if self.depthwise else self.c_in)
        if not self.depthwise:
            for t in range(self.c_in):
                first[t, t % (self.c_in // self.groups)] += 1
        inside = self.rimmed(branch.rim.bn, F.conv2d(x, first, groups=self.groups))
        return normed(branch.second.bn, self.conv(inside, branch.second.conv.weight, (0, 0)))

    def average(self, x: Tensor) -> Tensor:
        if self.depthwise:
            return normed(self.named.pop("average").bn, self.mean(F.pad(x, [self.padding] * 4)))
        branch = self.named.pop("1x1-average")
        mixed = F.conv2d(x, branch.first.conv.weight, groups=self.groups)
        return normed(branch.second.bn, self.mean(self.rimmed(branch.rim.bn, mixed)))

    def concat(self, x: Tensor) -> Tensor:
        branch, each = self.named.pop("concat"), self.c_out // self.groups
        more, fewer = each - each // 2, each // 2
        first, second = self.square(x, branch.first.weight), self.square(x, branch.second.weight)
        channels = []
        for g in range(self.groups):
            channels += [first[:, g * more + i] for i in range(more)] + [second[:, g * fewer + i] for i in range(fewer)]
        return normed(branch.bn, torch.stack(channels, 1))

    def asymmetric(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.named.pop("k x 1"), self.named.pop("1 x k")
        p, beyond = self.padding, self.padding - self.same
        down = normed(vertical.bn, self.conv(x, vertical.conv.weight, (p, beyond)))
        return down + normed(horizontal.bn, self.conv(x, horizontal.conv.weight, (beyond, p)))

    def __call__(self, x: Tensor, used: list[str]) -> Tensor:
        y = sum(getattr(self, name)(x) for name in used if not (name == "point" and self.depthwise))
        assert not self.named  # and there is no other branch
        return y


def possible(name: str, place: tuple) -> bool:
    c_in, c_out, _, _, groups, *_ = place
    return not (name == "concat" and c_out == groups) and not (name == "point" and groups == c_in == c_out)


@pytest.mark.parametrize("which", [*SWITCHES, "default", "all", "not origin"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_each_of_dbbs_branches_alone_and_together(place, which, lived_in):
    used = {"default": SWITCHES[:4], "all": SWITCHES, "not origin": SWITCHES[1:]}.get(which, (which,))
    *rest, padding = place
    if len(used) == 1 and not possible(which, place):
        with pytest.raises(Unsupported) as refused:
            blocks.create("dbb", *rest, padding=padding, **{**OFF, which: True})
        assert refused.value.remedy
        return
    used = [name for name in used if name == "point" or possible(name, place)]  # a missing 1x1 goes without saying
    options = {} if which == "default" else {**OFF, **dict.fromkeys(used, True)}
    block = lived_in(blocks.create("dbb", *rest, padding=padding, **options)).double()
    for training in (True, False):
        block.train(training)
        x = torch.randn(2, place[0], 8, 7, dtype=torch.float64)
        found = block(x)  # first: in training the rim is of the statistics that this very step has updated
        assert relative(found, Paper(block, place)(x, used)) <= 1e-12
    fused = block.fused()
    for x_NCHW in (x, torch.randn(2, place[0], 3, 4, dtype=torch.float64)):
        found, wanted = fused(x_NCHW), block(x_NCHW)
        assert relative(found, wanted) <= 1e-12
        assert relative(found[:, :, 0], wanted[:, :, 0]) <= 1e-12
        assert relative(found[..., -1], wanted[..., -1]) <= 1e-12


def test_dbbs_default_is_the_papers_block():
    block = blocks.create("dbb", 64, 64)
    assert list(named(block)) == ["origin", "1x1", "1x1-kxk", "1x1-average"]
    assert sum(parameter.numel() for parameter in block.parameters()) == 86_784
    x = torch.randn(8, 64, 56, 56)
    assert saved_bytes(block, x) / x.nbytes == pytest.approx(9.15, abs=0.005)
    assert list(named(blocks.create("dbb", 4, 4, groups=4))) == ["origin", "1x1-kxk", "average"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("origin", 9 * 64 * 64 + 2 * 64),
        ("point", 64 * 64 + 2 * 64),
        ("chain", 10 * 64 * 64 + 4 * 64),
        ("average", 64 * 64 + 4 * 64),
        ("twin", 9 * 64 * 64 + 2 * 64),
        ("concat", 9 * 64 * 64 + 2 * 64),
        ("asymmetric", 6 * 64 * 64 + 4 * 64),
    ],
)
def test_parameters_of_each_of_dbbs_branches(name, parameters):
    block = blocks.create("dbb", 64, 64, **{**OFF, name: True})
    assert sum(parameter.numel() for parameter in block.parameters()) == parameters


def test_the_outputs_of_dbbs_concat_are_halved_the_first_with_the_odd_one():
    branch = named(blocks.create("dbb", 6, 9, groups=3, concat=True))["concat"]
    assert (branch.first.weight.shape, branch.second.weight.shape) == ((6, 2, 3, 3), (3, 2, 3, 3))


def test_dbbs_first_gammas():
    every = dict.fromkeys(SWITCHES, True)
    block = blocks.create("dbb", 4, 4, gamma_init="origin", **every)
    last = {
        name: (branch.second if name.startswith("1x1-") else branch).bn.weight for name, branch in named(block).items()
    }
    assert {name: gamma.unique().tolist() for name, gamma in last.items()} == {
        name: [1.0] if name == "origin" else [0.0] for name in last
    }
    assert (named(block)["1x1-kxk"].rim.bn.weight == 1).all()  # only the norms that end a branch
    norms = [module for module in blocks.create("dbb", 4, 4, **every).modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() for norm in norms)
    with pytest.raises(Unsupported, match="every branch would start at zero") as refused:
        blocks.create("dbb", 4, 4, gamma_init="origin", origin=False)
    assert refused.value.remedy
