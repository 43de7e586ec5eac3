"""RepOptimizers: a plain kernel trains as the branches that only its optimizer knows of."""

from __future__ import annotations

import io
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from metric_cells import CELL, net, read
from torch import nn
from torch.nn import functional as F

from harness import blocks
from harness.errors import Unsupported
from harness.measuring.subject import Subject, make_optimizer
from harness.models.nets import backbones
from harness.records import Variant
from harness.training import rep_optimizers as repopt
from harness.training.rep_optimizers import RepAdamW, RepSGD, Scales

REFERENCE = Scales(0.233, 0.555, None)
"""The scales of the authors' own test."""


class CSLA(nn.Module):
    """Constant-scale linear addition, from the paper's equation: y = s_k (W_k * x) + s_1 (W_1 * x) + s_id x."""

    def __init__(self, c_in, c_out, scales, kernel_size=3, stride=1, groups=1):
        super().__init__()
        self.square = nn.Parameter(torch.randn(c_out, c_in // groups, kernel_size, kernel_size) / 5)
        self.point = nn.Parameter(torch.randn(c_out, c_in // groups, 1, 1) / 5)
        self.stride, self.groups, self.half = stride, groups, kernel_size // 2
        for name, scale in (("s_square", scales.conv), ("s_point", scales.pointwise)):
            self.register_buffer(name, torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1, 1))
        if scales.identity is not None:
            self.identity = nn.Parameter(torch.full((c_out,), float(scales.identity)))
        self.double()

    def forward(self, x):
        y = self.s_square * F.conv2d(x, self.square, None, self.stride, self.half, 1, self.groups)
        y = y + self.s_point * F.conv2d(x, self.point, None, self.stride, 0, 1, self.groups)
        return y + self.identity[:, None, None] * x if hasattr(self, "identity") else y

    @torch.no_grad()
    def kernel(self):
        """Tap by tap."""
        kernel = self.s_square[..., None] * self.square
        kernel[:, :, self.half, self.half] += (self.s_point[..., None] * self.point)[:, :, 0, 0]
        if hasattr(self, "identity"):
            for channel, scale in enumerate(self.identity):
                kernel[channel, channel % kernel.shape[1], self.half, self.half] += scale
        return kernel


def plain(csla):
    """The convolution that the addition is."""
    c_out, inputs, k, _ = csla.square.shape
    conv = nn.Conv2d(inputs * csla.groups, c_out, k, csla.stride, k // 2, 1, csla.groups, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(csla.kernel())
    return conv


def images(steps, channels):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, channels, 8, 8, generator=generator, dtype=torch.float64) for _ in range(steps)]


def trained(model, optimizer, batches):
    """The authors' arbitrary loss."""
    for x in batches:
        optimizer.zero_grad()
        model(x).var().backward()
        optimizer.step()
    return model


def difference(kernel, wanted):
    return ((kernel - wanted).abs().sum() / wanted.abs().sum()).item()


SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
ADAMW = {"lr": 0.01, "weight_decay": 0.1}
FORMS = {"sgd": (torch.optim.SGD, RepSGD, SGD), "adamw": (torch.optim.AdamW, RepAdamW, ADAMW)}
IMPLEMENTATIONS = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


def apart(form, csla, scales, steps, flags=None, **options):
    """How far the kernel that trains alone ends from the addition that trains as it is."""
    ordinary, rep, defaults = FORMS[form]
    options = {**defaults, **options}
    conv, batches = plain(csla), images(steps, csla.square.shape[1] * csla.groups)
    start = csla.kernel()
    trained(csla, ordinary(csla.parameters(), **options), batches)
    trained(conv, rep(conv.parameters(), {conv.weight: scales}, **options, **(flags or {})), batches)
    assert difference(conv.weight, start) > 0.05, "nothing was learned, so nothing was tested"
    return difference(conv.weight.detach(), csla.kernel())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("form", "limit"), [("sgd", 1e-13), ("adamw", 2e-6)])
def test_the_authors_own_test_of_fifty_steps(form, limit, implementation):
    """Theirs, in float32: 1.4e-6 (SGD) and 6e-6 (AdamW, whose eps is beside M g here and beside s g there)."""
    csla = CSLA(4, 4, REFERENCE)
    assert apart(form, csla, REFERENCE, 50, IMPLEMENTATIONS[implementation]) < limit


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_an_identity_scale_that_trains_and_decays_is_a_one_on_the_diagonal(scale, decay, nesterov):
    scales = Scales(0.7, 1.3, scale)
    assert apart("sgd", CSLA(4, 4, scales), scales, 30, weight_decay=decay, nesterov=nesterov) < 1e-12


def test_an_identity_scale_for_adamw():
    scales = Scales(0.7, 1.3, 0.3)
    assert apart("adamw", CSLA(4, 4, scales), scales, 30, eps=1e-14) < 1e-10


def test_an_identity_scale_that_is_frozen_or_does_not_decay_is_another_network():
    scales = Scales(0.7, 1.3, 1.0)
    frozen = CSLA(4, 4, scales)
    frozen.identity.requires_grad_(False)
    assert apart("sgd", frozen, scales, 30) > 4e-3
    csla = CSLA(4, 4, scales)
    conv, batches = plain(csla), images(30, 4)
    groups = [{"params": [csla.square, csla.point]}, {"params": [csla.identity], "weight_decay": 0.0}]
    trained(csla, torch.optim.SGD(groups, **SGD), batches)
    trained(conv, RepSGD(conv.parameters(), {conv.weight: scales}, **SGD), batches)
    assert difference(conv.weight.detach(), csla.kernel()) > 4e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("c_in", "c_out", "place", "identity"),
    [
        (4, 4, {"groups": 2}, 0.4),
        (4, 4, {"groups": 4}, 0.4),
        (4, 6, {"groups": 2, "stride": 2}, None),
        (3, 3, {"kernel_size": 5}, 1.0),
    ],
)
def test_groups_strides_and_sizes(form, c_in, c_out, place, identity):
    csla = CSLA(c_in, c_out, scales := Scales(0.7, 1.3, identity), **place)
    options = {"eps": 1e-14} if form == "adamw" else {"lr": 0.02}
    assert apart(form, csla, scales, 30, **options) < (1e-10 if form == "adamw" else 1e-12)


def test_searched_scales_are_one_per_channel():
    searched = Scales(torch.rand(4) + 0.2, torch.rand(4) + 0.2, None)
    for form, limit in (("sgd", 1e-12), ("adamw", 1e-10)):
        options = {"eps": 1e-14} if form == "adamw" else {}
        assert apart(form, CSLA(4, 4, searched), searched, 30, **options) < limit


def test_multiplying_the_gradient_alone_does_nothing_for_adam():
    csla = CSLA(4, 4, REFERENCE)
    conv, batches = plain(csla), images(30, 4)
    mask = repopt.multiplier(conv.weight, REFERENCE, 1)
    plainly, masked = deepcopy(conv), deepcopy(conv)
    masked.weight.register_hook(lambda gradient: gradient * mask)
    for model in (plainly, masked):
        trained(model, torch.optim.AdamW(model.parameters(), **ADAMW, eps=1e-14), batches)
    trained(csla, torch.optim.AdamW(csla.parameters(), **ADAMW, eps=1e-14), batches)
    assert difference(masked.weight, plainly.weight) < 1e-10
    assert difference(masked.weight, csla.kernel()) > 0.1


# the optimizer as an optimizer


def small(form, flags=None):
    """Two convolutions, of which one has scales, and a parameter that no gradient reaches."""
    torch.manual_seed(0)
    # a bias in front of a batch norm has rounding for a gradient, and AdamW makes steps of it
    first, second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(first, nn.BatchNorm2d(4), second).double()
    model.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    _, rep, options = FORMS[form]
    return model, rep(model.parameters(), {model[0].weight: Scales(0.7, 1.3, 1.0)}, **options, **(flags or {}))


@pytest.mark.parametrize("form", FORMS)
def test_all_implementations_train_alike(form):
    ends = []
    for flags in IMPLEMENTATIONS.values():
        model, optimizer = small(form, flags)
        trained(model, optimizer, images(5, 4))
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_what_has_no_scales_or_no_gradient_trains_as_ever(form):
    model, optimizer = small(form)
    other = deepcopy(model)
    ordinary, _, options = FORMS[form]
    trained(other, ordinary(other.parameters(), **options), images(1, 4))
    trained(model, optimizer, images(1, 4))
    assert torch.equal(model[2].weight, other[2].weight)
    assert not torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(model.unused, torch.ones(3))
    assert model.unused not in optimizer.state


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_left_as_they_are(form):
    model, optimizer = small(form)
    model(images(1, 4)[0]).var().backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    assert torch.equal(model[0].weight.grad, gradient)


@pytest.mark.parametrize("form", FORMS)
def test_a_closure_is_called_once_and_its_loss_returned(form):
    model, optimizer = small(form)
    other, its = small(form)
    (x,) = images(1, 4)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = model(x).var()
        loss.backward()
        calls.append(loss.item())
        return loss

    returned = optimizer.step(closure)
    trained(other, its, [x])
    assert calls == [returned.item()]
    assert torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 2])
def test_a_training_goes_on_from_a_file_and_from_a_copy(form, before):
    model, optimizer = small(form)
    batches = images(4, 4)
    trained(model, optimizer, batches[:before])
    copied, copy = deepcopy((model, optimizer))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file)
    loaded, its = small(form)
    loaded.load_state_dict(weights)
    its.load_state_dict(state)
    for each, of in ((model, optimizer), (copied, copy), (loaded, its)):
        trained(each, of, batches[before:])
    assert copied[0].weight is not model[0].weight
    for other in (copied, loaded):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_step_hooks_run_once(form):
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # whose class torch has then wrapped
    model, optimizer = small(form)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    trained(model, optimizer, images(2, 4))
    assert calls == ["before", "after"] * 2


# scales and the beginning of a network


def test_the_scales_of_a_network_for_which_none_were_searched():
    model = backbones.build("plain_b0", num_classes=10)
    found = list(repopt.default_scales(model).values())
    assert len(found) == 1 + 4 + 6 + 16 + 1
    stem, first, second, third = found[0], *found[1:4]
    assert stem == first == Scales(1.0, 1.0, None)  # both stride
    assert second == Scales(2**0.5, 2**0.5, 1.0)
    assert third == Scales(1.0, 1.0, 1.0)
    assert found[26].conv == pytest.approx((2 / 15) ** 0.5)
    assert found[27] == Scales(1.0, 1.0, None)


def test_a_first_layer_that_does_not_stride_begins_a_stage_too():
    layer = blocks.create("conv", 8, 8)
    assert list(repopt.default_scales(layer).values()) == [Scales(1.0, 1.0, 1.0)]


def test_a_network_begins_as_the_sum_of_its_imagined_branches():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, groups=2, bias=False).double()
    before = conv.weight.detach().clone()
    torch.manual_seed(1)
    repopt.initialize({conv.weight: Scales(0.5, torch.arange(6.0), 2.0)})
    torch.manual_seed(1)
    point = nn.Conv2d(6, 6, 1, groups=2, bias=False).weight.detach().double()
    assert point.abs().max() <= 3**-0.5  # torch's default: uniform within 1 / sqrt(fan in)
    for o in range(6):
        for i in range(3):
            wanted = 0.5 * before[o, i]
            wanted[1, 1] += o * point[o, i, 0, 0] + (2.0 if i == o % 3 else 0.0)
            torch.testing.assert_close(conv.weight[o, i], wanted, rtol=1e-14, atol=1e-14)


def test_the_weights_that_a_seed_gives_are_drawn_from_torchs_generator():
    def first(seed):
        torch.manual_seed(seed)
        conv = nn.Conv2d(4, 4, 3)
        repopt.initialize({conv.weight: Scales(0.0, 1.0, None)})
        return conv.weight.detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("block", ["repvgg", "dbb", "orepa", "dyrep"])
def test_a_network_with_real_branches_is_refused(block):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), blocks.create(block, 8, 8))
    with pytest.raises(Unsupported, match="plain networks") as refusal:
        repopt.default_scales(model)
    assert "block conv" in refusal.value.remedy


def test_a_network_that_has_branches_of_its_own_or_no_convolution_is_refused():
    with pytest.raises(Unsupported, match="RepVggBlock"):
        repopt.default_scales(backbones.build("repvgg_a0"))
    with pytest.raises(Unsupported, match="none"):
        repopt.default_scales(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, (1, 3))))
    frozen = nn.Conv2d(3, 8, 3)
    frozen.weight.requires_grad_(False)
    with pytest.raises(Unsupported, match="none"):
        repopt.default_scales(nn.Sequential(frozen))


# as a suite's optimizer


def of(**options):
    return Variant("repopt", options)


def test_what_a_suite_leaves_out_is_the_bases():
    subject = Subject(replace(CELL, optimizer=of()))
    optimizer = subject.optimizer(subject.model())
    (group,) = optimizer.param_groups
    assert type(optimizer) is RepSGD
    assert [group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [0.1, 0.9, False, 0.0]
    optimizer = make_optimizer(replace(CELL, optimizer=of(base="adamw", weight_decay=0.5)), subject.model())
    (group,) = optimizer.param_groups
    assert type(optimizer) is RepAdamW
    assert [group[name] for name in ("lr", "weight_decay", "foreach", "fused")] == [1e-3, 0.5, False, False]
    with pytest.raises(Unsupported, match="momentum"):
        make_optimizer(replace(CELL, optimizer=of(base="adamw", momentum=0.9)), subject.model())


def test_the_optimizer_of_a_cell_begins_and_multiplies():
    subject = Subject(replace(CELL, optimizer=of(lr=0.5, momentum=0.0)))
    model, other = subject.model(), subject.model()
    optimizer = subject.optimizer(model)
    torch.manual_seed(3)
    weight = model.branch.conv.weight
    start, gradient = weight.detach().clone(), torch.randn_like(weight)
    assert difference(start, other.branch.conv.weight) > 0.1
    weight.grad = gradient
    optimizer.step()
    wanted = torch.ones_like(gradient)
    wanted[:, :, 1, 1] += 1
    for channel in range(64):
        wanted[channel, channel, 1, 1] += 1
    torch.testing.assert_close(weight.detach(), start - 0.5 * wanted * gradient)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_step_holds_what_is_predicted_to_the_byte(base, implementation):
    for changes in ({}, {"memory_format": "channels_last"}, {"dtype": "amp_bfloat16"}):
        cell = replace(CELL, optimizer=of(base=base, implementation=implementation, weight_decay=0.1), **changes)
        real = read("train_memory", cell)["train_memory"]
        fake = read("predicted_train_memory", cell)["predicted_train_memory"]
        assert real.values == fake.values
        for part in ("before_step", "peak_in", "phases", "categories", "modules"):
            assert real.facts[part] == fake.facts[part], part
        weight, norm = 64 * 64 * 9 * 4, 2 * 512
        steps = 3 * 512 if base == "adamw" else 0
        moments = {"sgd": 1, "adamw": 2}[base]
        state = real.facts["categories"]["optimizer state"]
        assert state == moments * (weight + norm) + steps + weight  # the last is M


def test_a_network_holds_what_is_predicted():
    cell = net("resnet10t", optimizer=of(nesterov=True, implementation="foreach"), image_size=32)
    real = read("train_memory", cell)["train_memory"]
    fake = read("predicted_train_memory", cell)["predicted_train_memory"]
    assert real.values == fake.values
    assert real.facts["phases"] == fake.facts["phases"]
