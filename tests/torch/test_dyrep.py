"""DyRep's controller: what it chooses and when, that the eval output stays, what it leaves alone."""

from __future__ import annotations

import pytest
import timm
import torch
from dyrep_training import data, epoch_of, evaluated, net, relative, sgd, uneven
from torch import nn
from torch.nn import functional as F

from harness.blocks.reparam.dyrep import DyRepConv
from harness.models import fuse, randomize_statistics
from harness.training.growth import DyRep, calibrate, schedule_for
from harness.training.growth_scores import SCORES

ALL = ["1x1", "1x1-kxk", "1x1-average", "1xk", "kx1", "identity"]


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {"zero_init_last": False}), ("convnext_atto", {"ls_init_value": 1.0})]
)
def test_the_eval_output_stays_at_every_adjustment_of_timms_models(name, options):
    model = timm.create_model(name, num_classes=4, **options).double()
    images, labels = data(2, side=32, dtype=torch.float64)
    randomize_statistics(model, 1, images[0])
    probe = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    optimizer = sgd(model, 1e-3)
    dyrep = DyRep(model, optimizer, 1, 9, "snip", calibration_batches=2)
    errors = []
    for epoch in range(3):
        epoch_of(dyrep, optimizer, 10, images[:1], labels[:1])  # 10: not one that adjusts
        uneven(model)
        before = evaluated(model, probe)
        assert dyrep.after_epoch(epoch, images)
        errors.append(relative(evaluated(model, probe), before))
    assert len(dyrep.expansions) == 3
    assert len(dyrep.cuts) >= 2
    assert max(errors) <= 1e-12
    assert min(errors) < 1e-12 < before.abs().max()  # there is an output that could have changed
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    fused = fuse(model)
    assert not any(isinstance(module, DyRepConv) for module in fused.modules())
    assert relative(evaluated(fused, probe), evaluated(model, probe)) <= 1e-10
    assert all(type(fused.get_submodule(layer)) is nn.Conv2d for layer, _ in dyrep.structure())


@pytest.mark.parametrize("autocast", [False, True])
def test_single_precision_is_off_by_rounding_only(autocast):
    """Under autocast, too: calibration runs in it, folding does not."""
    model = net()
    images, labels = data()
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        epoch_of(dyrep, optimizer, 0, images, labels)
        epoch_of(dyrep, optimizer, 10, images, labels)
    uneven(model)
    before = evaluated(model, images[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        events = dyrep.after_epoch(1, images)
    assert [event["event"] for event in events] == ["expand", "cut"]
    assert relative(evaluated(model, images[0]), before) <= 1e-6


def test_the_training_output_of_the_expanded_layer_does_not_stay():
    """A batch norm behind the layer makes up for most of it; the layer itself has become another function."""
    torch.manual_seed(2)
    model = net().double()
    images, labels = data(dtype=torch.float64)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=3)
    epoch_of(dyrep, optimizer, 10, images, labels)
    features = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    (event,) = dyrep.after_epoch(0, images)
    block = model.get_submodule(event["layer"])
    x = features if event["layer"] == "0" else torch.randn(4, 8, 5, 5, dtype=torch.float64)
    assert relative(block.train()(x), block.eval()(x)) > 0.05


def test_calibration_sets_this_layers_statistics_and_nothing_else():
    model = net().double()
    images, _ = data(5, dtype=torch.float64)
    randomize_statistics(model, 1, images[0])
    model.train()
    model[1].eval()  # frozen by its owner
    block = DyRepConv.around(model[3])
    model[3] = block
    block.grow(block.fitting)
    for norm in block.norms():
        norm.running_mean.fill_(9)
        norm.num_batches_tracked.fill_(9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    calibrate(model, block, images[:4])
    own = {f"3.{key}" for key in block.state_dict()}
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in own if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert [module.training for module in model.modules()] == modes
    assert {norm.momentum for norm in block.norms()} == {0.1}
    assert all(parameter.grad is None for parameter in model.parameters())
    # The average over the batches of each batch's statistics, the rest of the model in eval mode.
    inputs = [evaluated(model[:3], x) for x in images[:4]]
    outputs = [F.conv2d(x, block.branches["1x1"].conv.weight) for x in inputs]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(block.branches["1x1"].bn.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.branches["1x1"].bn.running_var, variance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        block.branches["identity"].bn.running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    )


def test_no_more_batches_are_taken_than_asked_for():
    model = net()
    images, labels = data()
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=3)
    epoch_of(dyrep, optimizer, 10, images, labels)
    feed = iter([*images, *images])
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    dyrep.after_epoch(0, feed)
    assert [id(x) for x in seen] == [id(x) for x in images]
    assert len(list(feed)) == 3


def written_scores(steps):
    """The means by layer, from (weight, gradient) of every step."""
    scores = {}
    for layer in steps[0]:
        pairs = [step[layer] for step in steps]
        scores[layer] = {
            "synflow": sum((g * w).sum().item() for w, g in pairs) / len(pairs),
            "grad_norm": sum(g.norm().item() for _, g in pairs) / len(pairs),
            "snip": sum((g * w).abs().sum().item() for w, g in pairs) / len(pairs),
        }
    return scores


@pytest.mark.parametrize("score", SCORES)
def test_the_highest_mean_score_is_expanded(score):
    model = net().double()
    images, labels = data(dtype=torch.float64)
    optimizer = sgd(model)
    dyrep = DyRep(model, optimizer, 1, 9, score)
    steps = []
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        steps.append({i: (model[int(i)].weight.detach().clone(), model[int(i)].weight.grad.clone()) for i in "036"})
        dyrep.record()
        optimizer.step()
    wanted = written_scores(steps)
    ranking = sorted(wanted, key=lambda layer: wanted[layer][score], reverse=True)
    (event,) = dyrep.after_epoch(0, images)
    assert event["layer"] == ranking[0]
    assert event["rule"] == score
    assert event["score"] == pytest.approx(wanted[ranking[0]][score], rel=1e-9, abs=1e-15)
    assert event["scores"] == pytest.approx(wanted[ranking[0]], rel=1e-9, abs=1e-15)
    assert [other["layer"] for other in event["runners_up"]] == ranking[1:]
    fits = {"0": ALL[:-1], "3": ALL, "6": ALL}[event["layer"]]
    assert event["branches"] == fits
    assert isinstance(model[int(event["layer"])], DyRepConv)


def test_behind_a_batch_norm_synflow_is_next_to_nothing_and_the_journal_shows_it():
    model = net().double()[:3]
    images, _ = data(dtype=torch.float64)
    dyrep = DyRep(model, sgd(model), 1, 9)
    model(images[0]).square().sum().backward()
    dyrep.record()
    (event,) = dyrep.after_epoch(0, images)
    assert abs(event["scores"]["synflow"]) < 1e-3 * event["scores"]["snip"]


def test_random_choice_is_by_seed_and_epoch_and_leaves_the_stream_alone():
    def choices(seed, first):
        torch.manual_seed(0)
        model = net()
        images, labels = data()
        dyrep = DyRep(model, optimizer := sgd(model), 1, 99, "random", seed=seed, calibration_batches=1)
        before = torch.get_rng_state()
        for epoch in range(first, first + 3):
            epoch_of(dyrep, optimizer, epoch, images[:1], labels[:1])
        assert torch.equal(torch.get_rng_state(), before)
        return [event["layer"] for event in dyrep.expansions]

    assert choices(0, 0) == choices(0, 0)
    assert len({tuple(choices(seed, 0)) for seed in range(6)}) > 2
    assert len({choices(0, epoch)[0] for epoch in range(6)}) > 1


def test_a_training_repeats_bit_by_bit():
    def trained():
        torch.manual_seed(7)
        model = net()
        images, labels = data()
        dyrep = DyRep(model, optimizer := sgd(model), 1, 9)
        losses = [loss for epoch in range(3) for loss in epoch_of(dyrep, optimizer, epoch, images, labels)]
        return losses, dyrep.journal, model.state_dict()

    (losses, journal, state), (again, journal_again, state_again) = trained(), trained()
    assert losses == again
    assert journal == journal_again
    assert all(torch.equal(state[key], state_again[key]) for key in state)


def test_it_adjusts_when_the_schedule_says():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), interval=2, last_epoch=5, calibration_batches=1)
    for epoch in range(9):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    assert [event["epoch"] for event in dyrep.expansions] == [1, 3]


def test_the_paper_s_schedule_in_proportion():
    assert schedule_for(120) == (5, 100)
    assert schedule_for(240) == (10, 200)
    assert schedule_for(60) == (3, 50)
    assert schedule_for(12) == (1, 10)
    assert [schedule_for(epochs) for epochs in (1, 2, 3)] == [(1, 1), (1, 1), (1, 2)]
    for epochs in range(2, 300):
        interval, last = schedule_for(epochs)
        adjusted = [epoch for epoch in range(epochs) if epoch < last and (epoch + 1) % interval == 0]
        assert 1 <= len(adjusted) <= 20
        assert max(adjusted) < epochs - 1  # what is grown is trained


def test_the_budget_ends_expansion_and_not_cutting():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1, max_expansions=1)
    epoch_of(dyrep, optimizer, 0, images, labels)
    uneven(model)
    epoch_of(dyrep, optimizer, 1, images, labels)
    assert [event["event"] for event in dyrep.journal] == ["expand", "cut"]
    epoch_of(dyrep, optimizer, 2, images, labels)
    assert len(dyrep.expansions) == 1


def test_when_everything_is_expanded_it_goes_on():
    model = net()
    images, labels = data(1)
    dyrep = DyRep(model, optimizer := sgd(model), 1, 9, calibration_batches=1)
    for epoch in range(5):
        epoch_of(dyrep, optimizer, epoch, images, labels)
    assert sorted(event["layer"] for event in dyrep.expansions) == ["0", "3", "6"]
