"""DyRep's controller: which convolution gets branches (Rep), which branches go (Dep), and when, while a model trains.

    dyrep = DyRep(model, optimizer, *schedule_for(epochs))
    for epoch in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()    # then unscale and clip, if at all
            dyrep.record()
            optimizer.step()
        dyrep.after_epoch(epoch, images)    # what holds the old parameters (DDP, compiled graphs, averages) is to
                                            # be made anew where this returns something

Works on models with block `dyrep`, whose places are then the only ones, and on any other: a plain convolution is
replaced at its own name by a `DyRepConv` when it is expanded. What is expanded is not expanded again inside, as the
authors' code does once: absorbing into an origin that has branches itself starts those anew, uncalibrated.
Paper: Huang et al., DyRep, CVPR 2022, arXiv:2203.12868; block and rims in `harness.blocks.reparam.dyrep`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice

import torch
from torch import Tensor, nn

from harness.blocks.reparam.dyrep import ORIGIN, DyRepBlock, DyRepConv
from harness.errors import HarnessError
from harness.models.layers import replace_module
from harness.records import Json
from harness.registry import unknown
from harness.training.growth_scores import RANDOM, SCORES, Scores
from harness.training.regrouping import GroupOf, Regrouping
from harness.training.rules import RULES, Rule, TrainingContext

SPREAD = 0.02
"""Branches are cut where the (n - 1) standard deviation of their weights is larger: else none stands back ..."""
WEAK = 0.1
"""... and then those below the mean and below this."""
RUNNERS_UP = 3
"""So many are written down beside each convolution that was chosen."""
EPOCHS, INTERVAL, LAST_EPOCH = 120, 5, 100
"""The paper's ImageNet schedule for ResNets."""

Event = dict[str, Json]
Structure = list[tuple[str, tuple[str, ...]]]


def schedule_for(epochs: int) -> tuple[int, int]:
    """(interval, last epoch) of a training of `epochs`: the paper's ImageNet schedule in proportion, each at least 1.

    Never more than the paper's 20 adjustments. What grows has an epoch to train in, unless there is but one in all.
    """
    interval = math.ceil(epochs * INTERVAL / EPOCHS)
    last_epoch = min(round(epochs * LAST_EPOCH / EPOCHS), epochs - 1)
    return interval, max(1, last_epoch)


class DyRep:
    """Rep and Dep of a model in training; see the module.

    interval, last_epoch: adjusts after epoch e (from 0) where e < last_epoch and (e + 1) % interval == 0.
    score: what decides, on the mean over the steps since the last adjustment; see `SCORES`, or "random".
    calibration_batches: so many set the running statistics of new branches.
    seed: of new branches and of "random", together with the epoch: a resumed training draws the same, and torch's own
        stream is left alone.
    max_expansions: the budget; None for one at every adjustment.
    group_of: which group of the optimizer a parameter belongs to, where the usual rules do not say; see `Regrouping`.

    `journal` has every expansion, cut and collapse as plain JSON.
    Raises HarnessError for a model that nothing can be expanded in.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        interval: int,
        last_epoch: int,
        score: str = SCORES[0],
        calibration_batches: int = 20,
        seed: int = 0,
        max_expansions: int | None = None,
        group_of: GroupOf | None = None,
    ) -> None:
        if score not in (*SCORES, RANDOM):
            raise unknown("DyRep score", score, (*SCORES, RANDOM))
        if interval < 1 or calibration_batches < 1:
            raise HarnessError("DyRep needs an interval and calibration batches", remedy="use whole numbers >= 1")
        self.model = model
        self.interval, self.last_epoch = interval, last_epoch
        self.score = score
        self.calibration_batches = calibration_batches
        self.seed = seed
        self.max_expansions = max_expansions
        self.journal: list[Event] = []
        self._recorded = False
        self._changed = list(_grown(model))  # paths, in the order in which they were first expanded
        self._scores = Scores(model)
        if not self._scores.candidates and not any(isinstance(module, DyRepBlock) for module in model.modules()):
            raise HarnessError(
                f"nothing in this {type(model).__name__} can be expanded",
                remedy="use a model with plain square convolutions larger than 1x1",
            )
        self._groups = Regrouping(model, optimizer, group_of)

    @property
    def expansions(self) -> list[Event]:
        return [event for event in self.journal if event["event"] == "expand"]

    @property
    def cuts(self) -> list[Event]:
        """Cuts, those that left nothing among them."""
        return [event for event in self.journal if event["event"] != "expand"]

    def record(self) -> None:
        """Add up the scores of this step: gradients are there, unscaled, and the optimizer has not moved yet."""
        self._recorded = True
        if self._may_expand:
            self._scores.record()

    def after_epoch(self, epoch: int, batches: Iterable[Tensor]) -> list[Event]:
        """Rep and Dep where the schedule says so; what has changed, in the words of the journal.

        batches: training images (N, C, H, W) where the model is, at most `calibration_batches` of them are taken.
        The model's eval output stays; its training output does not, where it was expanded or cut.
        """
        if epoch >= self.last_epoch or (epoch + 1) % self.interval:
            return []
        before = len(self.journal)
        if self._may_expand:
            self._rep(epoch, batches)
        for layer, block in _grown(self.model).items():
            weak = weak_branches(block.importance())
            if weak:
                self._cut(epoch, layer, block, weak)
        self._settle()
        return self.journal[before:]

    def cut(self, epoch: int, layer: str, slots: Collection[str]) -> None:
        """Cut these branches of a layer; a layer without any is a plain convolution again, with a bias.

        The rule cuts none that has the largest weight, so it never comes to that by itself.
        """
        block = _grown(self.model).get(layer)
        if block is None or not {*slots} <= {*block.branches}:
            raise HarnessError(f"{layer} has no branches {', '.join(slots)}", remedy="use those in structure()")
        self._cut(epoch, layer, block, slots)
        self._settle()

    def structure(self) -> Structure:
        """(path, slots) of every layer that was ever expanded, for `restore`; the origin alone: plain with a bias."""
        modules = dict(self.model.named_modules())
        blocks = [(path, modules[path]) for path in self._changed]
        return [(path, block.slots if isinstance(block, DyRepConv) else (ORIGIN,)) for path, block in blocks]

    def restore(self, structure: Sequence[tuple[str, Sequence[str]]], journal: Iterable[Event] = ()) -> None:
        """Give a freshly built model the saved structure; then load its state and the optimizer's.

        journal: what was written until then; the budget counts the expansions in it.
        """
        for path, slots in structure:
            block = self._block(path)
            branches = [slot for slot in slots if slot != ORIGIN]
            if not {*branches} <= {*block.fitting}:
                problem = f"{path} cannot have the branches {', '.join(branches)}"
                raise HarnessError(problem, remedy="build the model that the structure was saved from")
            block.cut(tuple(block.branches))
            if branches:
                block.grow(branches)
            else:
                self._put_back(path, block)
        self._changed = [path for path, _ in structure]
        self.journal[:] = journal
        self._settle()

    @property
    def _may_expand(self) -> bool:
        return self.max_expansions is None or len(self.expansions) < self.max_expansions

    def _rep(self, epoch: int, batches: Iterable[Tensor]) -> None:
        if not self._recorded:
            remedy = "call record() between backward and the optimizer's step"
            raise HarnessError("DyRep has no scores to choose by", remedy=remedy)
        generator = torch.Generator().manual_seed(self.seed * 2**20 + epoch)
        ranked = self._scores.ranked(self.score, generator)
        if not ranked:
            return
        images = iter(batches)
        first = list(islice(images, 1))
        if not first:
            raise HarnessError("no batch to calibrate new branches on", remedy="hand after_epoch some training images")
        (layer, score), *others = ranked
        block = self._block(layer)
        total = block.exact().summed()
        with torch.random.fork_rng(devices=[]):  # torch draws for each new layer, too, before DyRep's own start
            block.grow(block.fitting, generator)
        calibrate(self.model, block, islice(chain(first, images), self.calibration_batches))
        block.absorb(total)
        if layer not in self._changed:
            self._changed.append(layer)
        event: Event = {"epoch": epoch, "event": "expand", "layer": layer, "branches": [*block.branches]}
        event |= {"rule": self.score, "score": score, "scores": dict(self._scores.means()[layer])}
        event["runners_up"] = [{"layer": other, "score": its} for other, its in others[:RUNNERS_UP]]
        self.journal.append(event)

    def _cut(self, epoch: int, layer: str, block: DyRepConv, slots: Collection[str]) -> None:
        weights: dict[str, Json] = dict(block.importance())
        block.cut(slots)
        left: list[Json] = list(block.branches)
        kind = "cut" if left else "collapse"
        event: Event = {"epoch": epoch, "event": kind, "layer": layer, "branches": [*slots], "left": left}
        self.journal.append(event | {"weights": weights})
        if not left:
            self._put_back(layer, block)

    def _block(self, path: str) -> DyRepConv:
        """The expandable convolution at this place; put there around the plain one where there is none yet."""
        modules = dict(self.model.named_modules())
        module = modules.get(path)
        if isinstance(module, DyRepConv):
            return module
        if path not in self._scores.candidates:
            raise HarnessError(f"{path} cannot be expanded", remedy="build the model that was expanded there")
        block = DyRepConv.around(self._scores.candidates[path])
        replace_module(self.model, path, block)
        return block

    def _put_back(self, path: str, block: DyRepConv) -> None:
        if not isinstance(block, DyRepBlock):
            replace_module(self.model, path, block.conv)

    def _settle(self) -> None:
        """After a change of the model: its parameters into the optimizer, and scores from the start."""
        self._groups.apply(self.model)
        self._scores = Scores(self.model)


def weak_branches(weights: Mapping[str, float]) -> list[str]:
    """The branches to cut, by the weights of all that a layer has; a single one has no spread and is kept."""
    if len(weights) < 2:
        return []
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    if not values.std() > SPREAD:
        return []
    mean = values.mean().item()
    return [slot for slot, weight in weights.items() if weight < mean and weight < WEAK]


@torch.no_grad()
def calibrate(model: nn.Module, block: DyRepConv, batches: Iterable[Tensor]) -> None:
    """Running statistics of this block's branches, averaged over the batches; all other norms of the model stay."""
    norms = block.norms()
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages over all that it sees
        norm.train()
    try:
        for x_NCHW in batches:
            model(x_NCHW)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _grown(model: nn.Module) -> dict[str, DyRepConv]:
    """The layers that have branches, by path."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, DyRepConv)}
    return {path: block for path, block in found.items() if block.branches}


@RULES.register("dyrep")
class DyRepRule(Rule):
    """`DyRep` with the paper's schedule in proportion to the training, and the score that the model's blocks name."""

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        block = next(module for module in context.model.modules() if isinstance(module, DyRepBlock))
        schedule = schedule_for(context.epochs)
        self._dyrep = DyRep(context.model, context.optimizer, *schedule, score=block.score, seed=context.seed)
        self.journal = self._dyrep.journal

    def after_backward(self) -> None:
        self._dyrep.record()

    def after_epoch(self, epoch: int, images: Iterable[Tensor]) -> None:
        with self.context.autocast():
            self._dyrep.after_epoch(epoch, images)
