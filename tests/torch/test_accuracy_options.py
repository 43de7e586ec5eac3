"""What a suite may ask of a training: RepVGG's custom L2, DyRep's growing blocks; and what becomes of one that diverges."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from metric_cells import CELL, net, read
from torch import nn

from harness.errors import Unsupported
from harness.measuring.subject import Subject, make_optimizer
from harness.measuring.training_step import Training
from harness.metrics import METRICS
from harness.metrics.accuracy import trained
from harness.planning import plan
from harness.records import Fingerprint, Record, Status, Task, TaskKind, Variant
from harness.report.tables import tables, views
from harness.store.directory import describe
from harness.store.journal import Journal
from harness.store.run import META, open_run
from harness.suite import load_suite
from harness.training.schedules import warmup_and_cosine
from harness.worker import worker
from harness.worker.messages import Order

QUICK = {"epochs": 1, "batch_size": 10, "image_size": 16, "train_images": 100}
DECAY = {"weight_decay": 0.02, "custom_l2": True}


def sgd(**options):
    return Variant("sgd", {"lr": 0.05, **options})


def readings(cell, **options):
    return {(r.metric, r.form): r for r in METRICS["accuracy"].readings(Subject(cell), {**QUICK, **options})}


# RepVGG's custom L2


def l2(block):
    """Filter by filter, from the reference: (weights, penalty without the decay)."""
    square, point = block.branches[0], block.branches[1]
    total = torch.zeros(())
    for o in range(square.conv.out_channels):
        t3, t1 = (
            (each.bn.weight[o] / (each.bn.running_var[o] + each.bn.eps).sqrt()).detach() for each in (square, point)
        )
        kernel, centre = square.conv.weight[o], square.conv.weight[o][:, 1, 1]
        total = total + (kernel**2).sum() - (centre**2).sum()
        total = total + ((centre * t3 + point.conv.weight[o][:, 0, 0] * t1) ** 2 / (t3**2 + t1**2)).sum()
    return [square.conv.weight, point.conv.weight], total


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_with_custom_l2_is_one_down_the_loss_with_it(momentum, lived_in):
    """Against steps written out here: penalty in the loss, no decay of the two kernels, decay of all else."""
    cell = replace(CELL, block=Variant("repvgg"), optimizer=sgd(momentum=momentum, **DECAY), dtype="float64")
    training = Training.of(Subject(cell))
    lived_in(training.model)
    ours, theirs = training.model, Subject(cell).model()
    theirs.load_state_dict(ours.state_dict())
    buffers = {parameter: torch.zeros_like(parameter) for parameter in theirs.parameters()}
    for _ in range(3):
        training()
        loss = theirs(training.x).square().mean()
        kernels, penalty = l2(theirs)  # after the forward: of this step's variances
        gradients = torch.autograd.grad(loss + 0.02 / 2 * penalty, list(theirs.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
                decay = 0.0 if any(parameter is kernel for kernel in kernels) else 0.02
                buffers[parameter].mul_(momentum).add_(gradient + decay * parameter)
                parameter.sub_(buffers[parameter], alpha=0.05)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_without_it_nothing_is_added():
    subject = Subject(replace(CELL, block=Variant("repvgg"), optimizer=sgd(weight_decay=0.1)))
    loss, model = torch.ones(()), subject.model()
    assert subject.regularized(loss, model) is loss
    (group,) = subject.optimizer(model).param_groups
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("implementation", ["single", "foreach", "fused"])
def test_custom_l2_holds_what_is_predicted_to_the_byte(implementation):
    cell = replace(CELL, block=Variant("repvgg"), optimizer=sgd(implementation=implementation, **DECAY))
    for dtype in ("float32", "amp_bfloat16"):
        real = read("train_memory", replace(cell, dtype=dtype))["train_memory"]
        fake = read("predicted_train_memory", replace(cell, dtype=dtype))["predicted_train_memory"]
        assert real.values == fake.values
        for part in ("before_step", "peak_in", "phases", "categories", "modules"):
            assert real.facts[part] == fake.facts[part], part


def test_training_for_accuracy_takes_the_same_steps_as_a_training_step():
    cell = net("test_resnet", "repvgg", optimizer=sgd(**DECAY))
    images, labels = torch.randn(40, 3, 16, 16), torch.arange(40) % 10
    ends = []
    for options in (DECAY, {"weight_decay": 0.02}):
        subject = Subject(replace(cell, optimizer=sgd(**options)))
        model = subject.model("train", classes=10)
        learned = trained(subject, model, images, labels, 1, 10)
        ends.append((learned, model))
    (first, with_it), (second, without) = ends
    assert first.losses[0] == second.losses[0], "the train loss is the loss alone"
    assert first.losses[1:] != second.losses[1:]
    subject = Subject(cell)
    model = subject.model("train", classes=10)
    optimizer, rates = subject.optimizer(model), [warmup_and_cosine(step, 4) for step in range(4)]
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for chosen, rate in zip(shuffled.split(10), rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * rate
        Training(subject, model, optimizer, images[chosen], labels[chosen])()
    for one, other in zip(with_it.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(with_it.parameters()), next(without.parameters()))


def test_custom_l2_is_refused_where_it_would_do_nothing():
    with pytest.raises(Unsupported, match="RepVGG blocks") as refusal:
        make_optimizer(replace(CELL, optimizer=sgd(**DECAY)), Subject(CELL).model())
    assert "repvgg" in refusal.value.remedy
    cell = replace(CELL, block=Variant("repvgg"), optimizer=sgd(custom_l2=True))
    with pytest.raises(Unsupported, match="is 0"):
        make_optimizer(cell, Subject(cell).model())


# a training that diverges


DIVERGES = net("test_resnet", optimizer=sgd(lr=1e20))


def test_a_training_that_diverges_ends_there_and_says_so():
    got = readings(DIVERGES)
    for form in ("train", "fused"):
        accuracy = got["accuracy", form]
        assert accuracy.values == (0.1,), "a nan is taken for the first class, which one digit in ten is"
        assert accuracy.facts["outputs_not_finite"] == 1000
    assert got["accuracy", "train"].facts["diverged_at_step"] == 2
    assert got["accuracy", "train"].facts["steps"] == 1
    assert got["train_loss", "train"].values == ()
    facts = got["train_loss", "train"].facts
    assert math.isfinite(facts["first_loss"])
    assert facts["diverged_loss"] == "nan"
    assert got["diverged_at_step", "train"].values == (2,)


def test_one_that_does_not_says_nothing_of_it():
    got = readings(net("test_resnet", optimizer=sgd()))
    assert ("diverged_at_step", "train") not in got
    facts = got["accuracy", "train"].facts
    assert not {"diverged_at_step", "outputs_not_finite", "dyrep"} & facts.keys()
    assert facts["steps"] == 10
    assert len(got["train_loss", "train"].values) == 1


class Doomed(nn.Module):
    """A loss that is infinite from the third step on."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(3, 10)), 0

    def forward(self, x):
        self.calls += 1
        self.seen = self.weight.detach().clone()
        first = torch.tensor([0.0 if self.calls < 3 else math.inf] + [0.0] * 9)
        return x.mean((2, 3)) @ self.weight - first


def test_the_step_whose_loss_is_not_finite_is_not_made():
    model, x, y = Doomed(), torch.randn(20, 3, 4, 4), torch.zeros(20, dtype=torch.int64)
    learned = trained(Subject(net(optimizer=sgd())), model, x, y, 2, 5)
    assert (len(learned.losses), learned.diverged_at, learned.end, model.calls) == (2, 3, math.inf, 3)
    assert learned.ending == {"diverged_at_step": 3, "diverged_loss": "inf"}
    assert torch.equal(model.weight, model.seen)
    assert not torch.equal(model.weight, torch.ones(3, 10))


def test_one_that_diverges_at_once_has_learned_nothing():
    x = torch.full((20, 3, 4, 4), math.nan)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    learned = trained(Subject(net(optimizer=sgd())), model, x, torch.zeros(20, dtype=torch.int64), 1, 5)
    assert (learned.losses, learned.diverged_at) == ((), 1)


SUITE = """
axes:
  block: conv
  backbone: test_resnet
  optimizer: [{sgd: {lr: 0.05}}, {sgd: {lr: 1.0e+20}}]
compare: {axis: optimizer, reference: {sgd: {lr: 0.05}}}
metrics: [{accuracy: {epochs: 1, batch_size: 10, image_size: 16, train_images: 100}}]
budget: {seeds: 1}
"""


@pytest.fixture
def run(tmp_path):
    """The suite above, done by the worker, written to disk and read back."""
    (tmp_path / "s.yaml").write_text(SUITE)
    planned = plan(load_suite(tmp_path / "s.yaml"))
    fingerprint = Fingerprint("abc", {}, {})
    meta = describe(planned, fingerprint, {}, suite_text=SUITE, suite_path="s.yaml", overrides=())
    (tmp_path / META).write_text(json.dumps(meta))
    journal = Journal(tmp_path / "journal.jsonl")

    def emit(message):
        if "record" in message:
            json.dumps(message, allow_nan=False)  # raises for what JSON has no word for
            journal.append(Record.from_json(message["record"]))

    for task in planned.tasks:
        assert isinstance(task, Task)
        assert task.kind is TaskKind.TRAINING
        worker.perform(Order(task, task.key, fingerprint.id), emit)
    journal.close()
    return open_run(tmp_path)


def test_a_diverged_training_is_a_measured_cell_whose_report_shows_it(run):
    assert [record.status for record in run.records()] == [Status.OK, Status.OK]
    for line in (run.path / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    frame = run.frame().set_index(["optimizer", "metric", "form"])
    sound, lost = "sgd(lr=0.05)", "sgd(lr=1e+20)"
    assert (sound, "diverged_at_step", "train") not in frame.index
    assert frame.at[(lost, "diverged_at_step", "train"), "value"] == 2
    assert math.isnan(frame.at[(lost, "train_loss", "train"), "value"])
    assert frame.at[(lost, "accuracy", "train"), "value"] == 0.1
    columns = {column.heading: column.cells for table in tables(views(run)[0]) for column in table.columns}
    assert columns["train loss",][1] == "not a number"
    assert columns["diverged at step",] == ("–", "2")


# DyRep


def test_blocks_that_grow_do_so_between_epochs():
    cell = net("test_resnet", "dyrep", optimizer=sgd(momentum=0.9))
    got = readings(cell, epochs=3)
    journal = got["accuracy", "train"].facts["dyrep"]
    assert [event["epoch"] for event in journal if event["event"] == "expand"] == [0, 1]
    json.dumps(journal, allow_nan=False)
    assert "dyrep" not in got["accuracy", "fused"].facts
    assert got["changed_predictions", "fused"].values[0] <= 2


def test_growing_uses_the_gradients_and_the_images_of_the_training():
    subject = Subject(net("test_resnet", "dyrep", optimizer=sgd()))
    model = subject.model("train", classes=10)
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0])))
    images, labels = torch.randn(45, 3, 16, 16), torch.arange(45) % 10
    learned = trained(subject, model, images, labels, 2, 10)
    (event,) = learned.journals["dyrep"]
    assert (event["epoch"], event["event"]) == (0, "expand")
    assert all(score != 0 for score in event["scores"].values())
    assert [training for training, _ in seen] == [True] * 4 + [False] * 4 + [True] * 4
    for (_, trained_on), (_, calibrated_on) in zip(seen[:4], seen[4:8], strict=True):
        assert torch.equal(trained_on, calibrated_on)
    grown = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert len(grown) > len(before)
    assert len(learned.losses) == 8


def test_new_branches_are_trained_and_the_same_seed_grows_the_same():
    subject = Subject(net("test_resnet", "dyrep", optimizer=sgd()))
    images, labels = torch.randn(40, 3, 16, 16), torch.arange(40) % 10
    ends = []
    for _ in range(2):
        model = subject.model("train", classes=10)
        ends.append((trained(subject, model, images, labels, 2, 10), model))
    (learned, model), (again, other) = ends
    assert learned == again
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    (event,) = learned.journals["dyrep"]
    branches = model.get_submodule(event["layer"]).branches
    for branch in branches.values():
        *_, last = [module.weight for module in branch.modules() if isinstance(module, nn.BatchNorm2d)]
        assert (last != 0.01).all()
    assert [*branches] == event["branches"] != []


@pytest.mark.parametrize("score", ["synflow", "grad_norm", "snip", "random"])
def test_the_block_says_by_which_score_it_grows(score):
    subject = Subject(net("test_resnet", Variant("dyrep", {"score": score}), optimizer=sgd()))
    images, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 10
    learned = trained(subject, subject.model("train", classes=10), images, labels, 2, 10)
    assert [event["rule"] for event in learned.journals["dyrep"] if event["event"] == "expand"] == [score]
