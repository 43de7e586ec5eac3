"""DyRep beside the rest of a training: optimizer groups and states, schedulers, saving and resuming, which layers."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from dyrep_training import data, epoch_of, evaluated, net, relative, sgd, uneven
from torch import nn

from harness import blocks
from harness.blocks.reparam.dyrep import DyRepBlock, DyRepConv
from harness.errors import HarnessError, UnknownName
from harness.models import build, fuse, swap
from harness.training.growth import DyRep
from harness.training.growth_scores import expandable


def two_groups(model, decay=0.1):
    """As timm makes them: no decay in one dimension and for biases."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay, "lr": 0.01},
    ]


OPTIMIZERS = {
    "sgd": lambda model: sgd(model),
    "sgd, two groups": lambda model: torch.optim.SGD(two_groups(model), lr=0.05, momentum=0.9),
    "adamw, two groups": lambda model: torch.optim.AdamW(two_groups(model), lr=0.01),
    "adamw, named": lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_follows_the_model_and_its_scheduler_goes_on(make):
    model = net(bias=True)
    images, labels = data()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    dyrep = DyRep(model, optimizer, 1, 9, "snip", calibration_batches=1)
    groups = list(optimizer.param_groups)
    settings = [
        {key: value for key, value in group.items() if key not in ("params", "param_names", "lr")} for group in groups
    ]
    epoch_of(dyrep, optimizer, 10, images, labels, scheduler)
    states = {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}
    weights = dict(model.named_parameters())
    dyrep.after_epoch(0, images)
    layer = dyrep.expansions[0]["layer"]
    assert all(group is old for group, old in zip(optimizer.param_groups, groups, strict=True))
    for group, old in zip(optimizer.param_groups, settings, strict=True):
        assert {key: value for key, value in group.items() if key in old} == old
    named = dict(model.named_parameters())
    names = {id(p): name for name, p in named.items()}
    grouped = [[names[id(p)] for p in group["params"]] for group in groups]  # no KeyError: none that is gone
    assert sorted(name for group in grouped for name in group) == sorted(named)
    assert all(group == sorted(group) for group in grouped)
    assert all(group["param_names"] == grouped[i] for i, group in enumerate(groups) if "param_names" in group)
    if len(groups) == 2:
        assert all(named[name].ndim <= 1 for name in grouped[0])
        assert all(named[name].ndim > 1 for name in grouped[1])
    # Momentum: everything outside and the expanded convolution's bias keep theirs, its weight and what is new have none.
    assert weights[f"{layer}.weight"] not in optimizer.state
    assert named[f"{layer}.conv.bias"] is weights[f"{layer}.bias"]
    for name, parameter in named.items():
        if name == f"{layer}.conv.bias":
            assert optimizer.state[parameter] is states[f"{layer}.bias"]
        elif name.startswith(f"{layer}."):
            assert parameter not in optimizer.state
        else:
            assert optimizer.state[parameter] is states[name]
    rates = [group["lr"] for group in groups]
    losses = [loss for _ in range(6) for loss in epoch_of(dyrep, optimizer, 10, images, labels, scheduler)]
    assert losses[-1] < losses[0]
    assert [group["lr"] for group in groups] == [pytest.approx(rate * 4 / 22) for rate in rates]
    assert all(parameter in optimizer.state for parameter in named.values())


def test_a_cut_keeps_the_momentum_of_what_is_left():
    model = net()
    images, labels = data()
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, max_expansions=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    epoch_of(dyrep, optimizer, 10, images, labels)
    uneven(model)
    before = {name: optimizer.state[p] for name, p in model.named_parameters()}
    (event,) = dyrep.after_epoch(1, images)
    assert event["event"] == "cut"
    after = {name: optimizer.state[p] for name, p in model.named_parameters()}
    assert after.keys() < before.keys()
    assert len(optimizer.state) == len(after)
    assert all(after[name] is before[name] for name in after)
    branches = {name.split(".")[2] for name in before.keys() - after.keys()}
    assert branches == {*event["branches"]}


def test_frozen_parameters_stay_out_of_the_optimizer_and_of_the_choice():
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images, labels = data(1)
    dyrep = DyRep(model, optimizer, 1, 9, calibration_batches=1)
    for epoch in range(3):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    assert {event["layer"] for event in dyrep.expansions} == {"3", "6"}
    assert id(model[0].weight) not in {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_groups_by_another_rule_need_the_rule():
    model = net()
    layers = [{"params": list(module.parameters()), "lr": 0.1 * (i + 1)} for i, module in enumerate(model)]
    layers = [layer for layer in layers if layer["params"]]
    numbers = [i for i, module in enumerate(model) if list(module.parameters())]
    optimizer = torch.optim.SGD(layers, momentum=0.9)
    with pytest.raises(HarnessError, match="another rule"):
        DyRep(model, optimizer, 1, 9)
    with pytest.raises(HarnessError, match="another rule"):
        DyRep(model, optimizer, 1, 9, group_of=lambda name, parameter: 0)
    dyrep = DyRep(model, optimizer, 1, 9, group_of=lambda name, parameter: numbers.index(int(name.split(".")[0])))
    images, labels = data(1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    layer = int(dyrep.expansions[0]["layer"])
    members = {id(p) for p in optimizer.param_groups[numbers.index(layer)]["params"]}
    assert members == {id(p) for p in model[layer].parameters()}
    with pytest.raises(HarnessError, match="not the model's"):
        DyRep(net(), optimizer, 1, 9)


def saved(dyrep, optimizer):
    """What a checkpoint holds, through JSON where it can go through JSON."""
    plain = json.loads(json.dumps({"structure": dyrep.structure(), "journal": dyrep.journal}, allow_nan=False))
    return plain, copy.deepcopy(dyrep.model.state_dict()), copy.deepcopy(optimizer.state_dict())


def resumed(model, checkpoint, make, **options):
    plain, state, optimizer_state = checkpoint
    dyrep = DyRep(model, optimizer := make(model), 1, 9, **options)
    dyrep.restore(**plain)
    model.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    return dyrep, optimizer


def swapped(branches="none"):
    return swap(net(), "dyrep", where={"name": ["0", "3"]}, branches=branches)


@pytest.mark.parametrize("build_net", [net, swapped, lambda: swapped("all")], ids=["any model", "block", "block, all"])
@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adamw, two groups"]], ids=["sgd", "adamw"])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(make, build_net):
    images, labels = data()
    torch.manual_seed(0)
    model = build_net()
    options = {"score": "snip", "max_expansions": 3, "calibration_batches": 2}
    dyrep = DyRep(model, optimizer := make(model), 1, 9, **options)
    epoch_of(dyrep, optimizer, 0, images, labels)
    epoch_of(dyrep, optimizer, 10, images, labels)
    uneven(model)
    epoch_of(dyrep, optimizer, 1, images, labels)
    collapsed = dyrep.structure()[0][0]
    block = model.get_submodule(collapsed)
    dyrep.cut(1, collapsed, list(block.branches))
    checkpoint = saved(dyrep, optimizer)
    torch.manual_seed(99)
    other, other_optimizer = resumed(build_net(), checkpoint, make, **options)
    assert other.structure() == dyrep.structure()
    assert (collapsed, ("kxk",)) in dyrep.structure()
    for epoch in (10, 2, 3):
        torch.manual_seed(epoch)
        losses = epoch_of(dyrep, optimizer, epoch, images, labels)
        torch.manual_seed(epoch + 50)
        assert losses == epoch_of(other, other_optimizer, epoch, images, labels)
    assert other.journal == dyrep.journal
    state, other_state = dyrep.model.state_dict(), other.model.state_dict()
    assert list(state) == list(other_state)
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def test_restoring_what_does_not_fit_is_refused():
    model = net()
    dyrep = DyRep(model, sgd(model), 1, 9)
    for structure in ([("7", ["1x1", "kxk"])], [("nowhere", ["1x1", "kxk"])], [("0", ["kxk", "identity"])]):
        with pytest.raises(HarnessError) as refused:
            dyrep.restore(structure)
        assert "build the model" in refused.value.remedy


def test_a_copy_of_the_model_is_a_model_of_its_own():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    copied = copy.deepcopy(model)
    before = evaluated(copied, images[0])
    assert torch.equal(before, evaluated(model, images[0]))
    for epoch in range(1, 4):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    assert torch.equal(before, evaluated(copied, images[0]))


def test_with_block_dyrep_its_places_are_the_only_ones():
    model = swap(build("resnet18", num_classes=4), "dyrep").double()
    places = [name for name, module in model.named_modules() if isinstance(module, DyRepBlock)]
    assert len(places) == 16
    assert [*expandable(model)] == places
    images, labels = data(1, side=32, dtype=torch.float64)
    dyrep = DyRep(model, optimizer := sgd(model, 1e-3), 1, 9, calibration_batches=1)
    epoch_of(dyrep, optimizer, 10, images, labels)
    before = evaluated(model, images[0])
    (event,) = dyrep.after_epoch(0, images)
    assert event["layer"] in places
    assert relative(evaluated(model, images[0]), before) <= 1e-12
    assert relative(fuse(model)(images[0]), evaluated(model, images[0])) <= 1e-10


def test_blocks_that_start_with_all_branches_can_only_lose_some():
    model = swapped("all").double()
    images, labels = data(1, dtype=torch.float64)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9)
    epoch_of(dyrep, optimizer, 10, images, labels)
    uneven(model)
    before = evaluated(model, images[0])
    events = dyrep.after_epoch(0, images)
    assert [(event["event"], event["layer"]) for event in events] == [("cut", "0"), ("cut", "3")]
    assert relative(evaluated(model, images[0]), before) <= 1e-12
    assert relative(fuse(model)(images[0]), evaluated(model, images[0])) <= 1e-10


def test_a_block_alone_and_one_with_nothing_to_grow():
    assert [*expandable(blocks.create("dyrep", 8, 8))] == [""]
    model = nn.Sequential(blocks.create("dyrep", 8, 8, 1), nn.Flatten())
    dyrep = DyRep(model, sgd(model), 1, 9)
    model(torch.randn(2, 8, 3, 3)).sum().backward()
    dyrep.record()
    assert dyrep.after_epoch(0, [torch.randn(2, 8, 3, 3)]) == []


def test_which_convolutions_can_be_expanded():
    class Own(nn.Conv2d):
        pass

    shared, tied, hooked = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    twin = nn.Conv2d(4, 4, 3)
    twin.weight = tied.weight
    yes = {
        "plain": nn.Conv2d(4, 4, 3),
        "no same padding": nn.Conv2d(4, 4, 3, padding=0),
        "dilated": nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        "patches": nn.Conv2d(4, 4, 4, 4),
        "grouped": nn.Conv2d(4, 8, 5, 2, 2, groups=2),
    }
    no = {
        "1x1": nn.Conv2d(4, 4, 1),
        "not square": nn.Conv2d(4, 4, (3, 1)),
        "strides": nn.Conv2d(4, 4, 3, (1, 2)),
        "paddings": nn.Conv2d(4, 4, 3, padding=(1, 0)),
        "in words": nn.Conv2d(4, 4, 3, padding="same"),
        "circular": nn.Conv2d(4, 4, 3, padding_mode="circular"),
        "own forward": Own(4, 4, 3),
        "frozen": nn.Conv2d(4, 4, 3).requires_grad_(False),
        "hooked": hooked,
        "shared": shared,
        "shared too": shared,
        "tied": tied,
        "tied too": twin,
        "a block": blocks.create("dbb", 4, 4),
        "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    }
    assert [*expandable(nn.ModuleDict({**yes, **no}))] == list(yes)
    assert [*expandable(blocks.create("dbb", 4, 4))] == []


def test_convolutions_that_a_modules_own_conversion_reads_are_left_alone():
    model = timm.create_model("mobileone_s0", num_classes=4)
    assert expandable(model) == {}
    with pytest.raises(HarnessError, match="nothing in this"):
        DyRep(model, sgd(model), 1, 9)


def test_what_it_needs_is_asked_for():
    model = net()
    images, _ = data(1)
    dyrep = DyRep(model, sgd(model), 1, 9)
    with pytest.raises(HarnessError, match="no scores") as refused:
        dyrep.after_epoch(0, images)
    assert "record()" in refused.value.remedy
    model(images[0]).sum().backward()
    dyrep.record()
    structure = [type(module) for module in model.modules()]
    with pytest.raises(HarnessError, match="no batch to calibrate"):
        dyrep.after_epoch(0, [])
    assert [type(module) for module in model.modules()] == structure
    dyrep.after_epoch(0, images)
    assert dyrep.after_epoch(1, images) == []  # no step since then: a training that has diverged, say
    with pytest.raises(UnknownName, match="snap"):
        DyRep(model, sgd(model), 1, 9, "snap")
    with pytest.raises(HarnessError, match="interval"):
        DyRep(model, sgd(model), 0, 9)
    with pytest.raises(HarnessError, match="interval"):
        DyRep(model, sgd(model), 1, 9, calibration_batches=0)


def test_expanding_a_block_of_an_ordinary_model_does_not_go_inside_it():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1)
    for epoch in range(6):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    grown = [module for module in model.modules() if isinstance(module, DyRepConv)]
    assert len(grown) == 3
    assert not any(isinstance(inner, DyRepConv) for block in grown for inner in [*block.modules()][1:])
