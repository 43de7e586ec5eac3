"""What DyRep cuts and what it writes down about it."""

from __future__ import annotations

import json

import pytest
import torch
from dyrep_training import data, epoch_of, evaluated, net, relative, sgd
from torch import nn

from harness.errors import HarnessError
from harness.training.growth import DyRep, weak_branches


@pytest.mark.parametrize(
    ("weights", "cut"),
    [
        ({"1x1": 0.01, "1xk": 0.5}, ["1x1"]),
        ({"1x1": 0.01, "1xk": 0.02, "kx1": 0.5}, ["1x1", "1xk"]),
        ({"1x1": 0.09, "1xk": 0.11, "kx1": 0.5}, ["1x1"]),  # 0.11 is below the mean, and not weak
        ({"1x1": 0.01, "1xk": 0.03}, []),  # deviation 0.0141
        ({"1x1": 0.01, "1xk": 0.038}, []),  # 0.0198 by n - 1 ...
        ({"1x1": 0.01, "1xk": 0.039}, ["1x1"]),  # ... and 0.0205; by n both would stay
        ({"1x1": 0.05, "1xk": 0.09, "kx1": 0.0}, ["kx1"]),  # 0.05 is weak, and not below the mean of 0.0467
        ({"1x1": 0.01}, []),  # a single one has no deviation
        ({"1x1": 0.01, "1xk": float("inf")}, []),
        ({}, []),
    ],
    ids=str,
)
def test_which_branches_are_cut(weights, cut):
    assert weak_branches(weights) == cut


def test_the_journal_of_a_cut():
    model = net().double()
    images, labels = data(dtype=torch.float64)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1, max_expansions=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    layer = dyrep.journal[0]["layer"]
    block = model.get_submodule(layer)
    there = list(block.branches)
    nn.init.constant_(block.norm.weight, 2.0)
    for slot, gamma in zip(there, [0.02, 0.1, 0.9, 1.8, 0.3, 0.3], strict=False):
        nn.init.constant_(
            [m for m in block.branches[slot].modules() if isinstance(m, nn.BatchNorm2d)][-1].weight, gamma
        )
    before = evaluated(model, images[0])
    (event,) = dyrep.after_epoch(4, images)
    assert event == {
        "epoch": 4,
        "event": "cut",
        "layer": layer,
        "branches": there[:2],
        "left": there[2:],
        "weights": pytest.approx(dict(zip(there, [0.01, 0.05, 0.45, 0.9, 0.15, 0.15], strict=False))),
    }
    assert relative(evaluated(model, images[0]), before) <= 1e-12
    assert json.loads(json.dumps(dyrep.journal, allow_nan=False)) == dyrep.journal


def test_a_single_branch_is_never_cut():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1, max_expansions=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    layer = dyrep.journal[0]["layer"]
    dyrep.cut(0, layer, [slot for slot in model.get_submodule(layer).branches if slot != "1x1"])
    nn.init.zeros_(model.get_submodule(layer).branches["1x1"].bn.weight)
    assert dyrep.after_epoch(1, images) == []
    assert dyrep.structure() == [(layer, ("1x1", "kxk"))]


def test_cutting_all_by_hand_leaves_the_plain_convolution_that_can_be_expanded_again():
    model = net().double()
    images, labels = data(dtype=torch.float64)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, "snip", calibration_batches=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    layer = dyrep.journal[0]["layer"]
    before = evaluated(model, images[0])
    dyrep.cut(0, layer, list(model.get_submodule(layer).branches))
    assert type(model.get_submodule(layer)) is nn.Conv2d
    assert relative(evaluated(model, images[0]), before) <= 1e-12
    assert dyrep.journal[-1]["event"] == "collapse"
    assert dyrep.structure() == [(layer, ("kxk",))]
    assert {id(p) for p in model.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    for epoch in range(1, 4):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    assert [event["layer"] for event in dyrep.expansions].count(layer) == 2
    with pytest.raises(HarnessError, match="has no branches"):
        dyrep.cut(4, "7", ["1x1"])
