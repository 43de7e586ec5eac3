"""What a training step keeps and how high it climbs, in bytes."""

from __future__ import annotations

from collections.abc import Iterable

from harness.memory import peak_step_bytes, saved_bytes
from harness.metrics.base import metric, one
from harness.metrics.subject import Subject, optimizer_options
from harness.metrics.train_step import Training
from harness.records import Kind, Quantity, Reading, TaskKind


@metric(
    "saved_memory",
    TaskKind.CELL,
    Quantity("saved_memory", "B", Kind.COUNT, what="bytes one forward pass keeps for backward"),
)
def saved_memory(subject: Subject) -> Iterable[Reading]:
    """Bytes that one training forward keeps for backward.

    Every tensor handed to the saved-tensor hooks, once per storage, without parameters and buffers, the input
    included where it is kept.
    """
    x = subject.input()
    saved = saved_bytes(subject.model("train"), x)
    yield one("saved_memory", "train", "B", saved, inputs=saved / (x.numel() * x.element_size()))


@metric(
    "train_memory",
    TaskKind.CELL,
    Quantity("train_memory", "B", Kind.COUNT, what="peak of live tensors over a training step"),
)
def train_memory(subject: Subject) -> Iterable[Reading]:
    """Peak bytes of live tensors over a steady-state training step.

    Parameters, gradients, optimizer state, buffers, input, activations and temporaries. On the CPU every storage is
    counted, rounded up to 512 bytes as the CUDA allocator does; on an accelerator its allocator is asked.
    """
    step = Training(subject)
    if subject.device.kind == "cpu":
        peak = peak_step_bytes(step.model, step.optimizer, step, [step.x, step.target]).peak
        counted = "live storages, rounded up to 512 bytes"
    else:
        for _ in range(2):  # the second step is steady: gradients and momentum exist
            subject.device.memory_reset()
            step()
            subject.device.synchronize()
        peak, counted = subject.device.memory_peak(), "the device's allocator"
    implementation = optimizer_options(subject.cell)["implementation"]
    yield one("train_memory", "train", "B", peak, counted=counted, optimizer=implementation)
