"""Peak memory of a training step in its steady state, and what it is made of."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from harness.memory.modules import running_module
from harness.memory.tracker import StorageTracker, by

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"

Enter = Callable[[str], None]
"""Told the name of a phase as it begins."""


@dataclass(frozen=True)
class StepBytes:
    """Bytes of live tensors over one step.

    peak: the most; before: what was there when the step began; phases: the most of each phase.
    categories and owners: what was alive at the peak, by what it is and by the module it belongs to ("" for none:
    the input, the loss, what backward computes); each adds up to the peak. at: the phase the peak is in.
    """

    peak: int
    before: int
    phases: Mapping[str, int]
    categories: Mapping[str, int]
    owners: Mapping[str, int]

    @property
    def at(self) -> str:
        return next((phase for phase, most in self.phases.items() if most == self.peak), "before")


def peak_step_bytes(
    model: nn.Module,
    optimizer: Optimizer,
    step: Callable[[Enter], object],
    inputs: Iterable[Tensor] = (),
    first: Callable[[], object] | None = None,
) -> StepBytes:
    """The peak of the second call of `step`, a whole training step, which calls its argument with each phase's name.

    The first call, not counted, brings gradients and optimizer state into being; from the second on all steps
    are alike. `first` may do so more cheaply. Real and fake tensors give the same numbers (inside `fake_tensors`).
    """
    (first or (lambda: step(lambda phase: None)))()
    with no_collection(), running_module(model) as owner, StorageTracker(owner) as tracker:
        _register(tracker, model, optimizer)
        tracker.register(inputs, "input")
        before = tracker.current
        step(tracker.enter)
        # The gradients of this step: they came as temporaries of backward.
        _register(tracker, model, optimizer)
    lives = tracker.at_peak()
    return StepBytes(tracker.peak, before, dict(tracker.phases), by("category", lives), by("owner", lives))


def pretend_first_step(model: nn.Module, optimizer: Optimizer) -> None:
    """Bring gradients and optimizer state into being without a forward and a backward; values do not matter.

    Every parameter gets a gradient: a model that leaves one without must take a real first step.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    choices = [(group["foreach"], group["fused"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["foreach"], group["fused"] = True, False  # the same state, made with the fewest operators
    optimizer.step()
    for group, (foreach, fused) in zip(optimizer.param_groups, choices, strict=True):
        group["foreach"], group["fused"] = foreach, fused


def _register(tracker: StorageTracker, model: nn.Module, optimizer: Optimizer) -> None:
    for name, buffer in model.named_buffers():
        tracker.register([buffer], "buffers", _owner(model, name))
    for name, parameter in model.named_parameters():
        owner = _owner(model, name)
        tracker.register([parameter], "parameters", owner)
        if parameter.grad is not None:
            tracker.register([parameter.grad], "gradients", owner)
        state = tree_leaves(optimizer.state.get(parameter, {}))
        tracker.register((leaf for leaf in state if isinstance(leaf, Tensor)), "optimizer state", owner)


def _owner(model: nn.Module, tensor_name: str) -> str:
    """The module that a parameter or buffer belongs to; lists of parameters are no modules that run."""
    owner = tensor_name.rpartition(".")[0]
    while isinstance(model.get_submodule(owner), nn.ParameterList | nn.ParameterDict):
        owner = owner.rpartition(".")[0]
    return owner


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection in between: when it comes is chance, and a count must not depend on chance."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
