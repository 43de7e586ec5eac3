"""Conversion of a trained model into its deploy form: its seconds, and its peak of memory."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from harness.devices import Clock
from harness.errors import HarnessError, Unsupported
from harness.measuring.calls import steady
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.memory import StorageTracker, live_bytes
from harness.memory.steps import no_collection
from harness.models import fuse
from harness.quantity import Quantity
from harness.records import Kind, Reading, TaskKind


@metric(
    "conversion_time",
    TaskKind.FIRST,
    Quantity("conversion_time", "s", Kind.SAMPLED, forms=("fused",), what="seconds of a process's first harness.fuse"),
)
def conversion_time(subject: Subject) -> Iterable[Reading]:
    """Seconds that harness.fuse takes on the cell's model, the first time in a fresh process.

    A model is converted once in its life, and by a process that does it for the first time: that is what is read.
    What a repetition in the same process takes stands beside it as the fact `steady`.
    """
    model = _foldable(subject)
    clock = Clock(subject.device)
    subject.device.synchronize()
    seconds = clock.time(lambda: _fused(model))
    yield one("conversion_time", "fused", "s", seconds, **steady(clock, lambda: _fused(model)))


@metric(
    "conversion_memory",
    TaskKind.CELL,
    Quantity(
        "conversion_memory", "B", Kind.COUNT, forms=("fused",), what="peak of live tensors in harness.fuse, over before"
    ),
)
def conversion_memory(subject: Subject) -> Iterable[Reading]:
    """Peak bytes of live tensors on the cell's device during harness.fuse, beyond those that were live before.

    The original, which stays, is not in it; its copy, float64 versions, temporaries and the result are. On the CPU
    every storage counts, rounded up to 512 bytes as the CUDA allocator does; on an accelerator its allocator is
    asked. The folding itself is done on the CPU even then: fact `host` has the peak of what lives there.
    """
    model = _foldable(subject)
    device = subject.device
    asked = not device.is_host
    with no_collection(), _OnTheHost() as tracker:
        tracker.register([*model.parameters(), *model.buffers()])
        host_before = tracker.current
        device.synchronize()
        if asked:
            device.memory_reset()
        before = device.memory_now() if asked else host_before
        fused = _fused(model)
        device.synchronize()
        peak = device.memory_peak() if asked else tracker.peak
    result = live_bytes([*fused.parameters(), *fused.buffers()])
    facts = {
        "counted": "the device's allocator" if asked else "live storages, rounded up to 512 bytes",
        "original": live_bytes([*model.parameters(), *model.buffers()]),
        "result": result,
        "host": tracker.peak - host_before,
    }
    yield one("conversion_memory", "fused", "B", peak - before, **facts)


class _OnTheHost(StorageTracker):  # type: ignore[no-untyped-call]
    """Counts what lives in the CPU's memory. `fuse` looks at a copy on meta too, which has sizes and no bytes."""

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "cpu":
            super()._see(tensor)

    def register(self, tensors: Iterable[Tensor], category: str = "", owner: str = "") -> None:
        super().register((tensor for tensor in tensors if tensor.device.type == "cpu"), category, owner)


def _foldable(subject: Subject) -> nn.Module:
    if "fused" not in subject.forms:
        problem = f"nothing of block {subject.cell.block.name} becomes a convolution here"
        raise Unsupported(problem, remedy="leave its conversion out")
    return subject.model("train")


def _fused(model: nn.Module) -> nn.Module:
    try:
        return fuse(model)
    except HarnessError as problem:
        raise Unsupported(problem.problem, remedy=problem.remedy) from problem
