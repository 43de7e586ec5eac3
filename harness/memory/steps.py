"""Peak memory of a training step in its steady state."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from harness.memory.tracker import StorageTracker


@dataclass(frozen=True)
class StepBytes:
    """Bytes of live tensors: the most during one step, and what was there when it began."""

    peak: int
    before: int


def peak_step_bytes(
    model: nn.Module, optimizer: Optimizer, step: Callable[[], object], inputs: Iterable[Tensor] = ()
) -> StepBytes:
    """The peak of the second call of `step`, a whole training step: gradients cleared, forward, loss, backward, update.

    The first call, not counted, brings gradients and optimizer state into being; from the second on all steps
    are alike. Real and fake tensors give the same number in float32. Under bfloat16 autocast they differ:
    torch's fake batch norm keeps its statistics in bfloat16, the CPU's kernel in float32.
    """
    step()
    with _no_collection(), StorageTracker() as tracker:
        tracker.register(_standing(model, optimizer, inputs))
        before = tracker.current
        step()
    return StepBytes(tracker.peak, before)


def _standing(model: nn.Module, optimizer: Optimizer, inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
    yield from (leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor))
    yield from inputs


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in between: when it comes is chance, and a count must not depend on chance."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
