"""Peak memory of a training step: live tensors on the CPU, what the allocator says on an accelerator."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator

from harness.devices import Device
from harness.errors import Unsupported
from harness.measuring.metric import metric, one
from harness.measuring.predicted_step import assumptions, breakdown, predict
from harness.measuring.subject import Subject, optimizer_options
from harness.measuring.training_step import Training
from harness.memory import peak_step_bytes
from harness.quantity import Parts, Phrase, Quantity, Wording
from harness.records import Json, Kind, Reading, TaskKind


@metric(
    "train_memory",
    TaskKind.CELL,
    Quantity(
        "train_memory",
        "B",
        Kind.COUNT,
        what="peak of live tensors over a training step",
        rank=30,
        phrases=(Phrase(Wording.BYTES, "the peak of training"),),
        parts=(
            Parts("phases", "The peak of training by phase"),
            Parts("categories", "What the peak of training is made of"),
        ),
    ),
    # What an allocator holds in reserve, and what a first step tries out, is the machine's affair and not a count.
    Quantity("train_memory_reserved", "B", Kind.SAMPLED, what="peak of what the allocator held (accelerators)"),
    Quantity("train_memory_first", "B", Kind.SAMPLED, what="peak over the very first step (accelerators)"),
    Quantity("train_memory_unpredicted", "B", Kind.SAMPLED, what="peak beyond the prediction (accelerators)"),
)
def train_memory(subject: Subject) -> Iterable[Reading]:
    """Peak bytes of live tensors over a steady-state training step.

    Parameters, gradients, optimizer state, buffers, input, activations and temporaries. On the CPU every storage is
    counted, rounded up to 512 bytes as the CUDA allocator does; on an accelerator its allocator is asked, and
    the prediction stands beside it: the difference is workspaces and other operators.
    """
    facts: dict[str, Json] = {"optimizer": optimizer_options(subject.cell)["implementation"]}
    if not subject.device.is_host:
        gc.collect()
        subject.device.empty_cache()  # what an earlier metric of this process left in reserve is not this step's
        facts["held_before"] = subject.device.memory_now()
    step = Training.of(subject)
    if subject.device.is_host:
        found = peak_step_bytes(step.model, step.optimizer, step, [step.x, step.target])
        counted = "live storages, rounded up to 512 bytes"
        yield one("train_memory", "train", "B", found.peak, counted=counted, **facts, **breakdown(found))
    else:
        yield from _asked(subject, step, facts)


def _asked(subject: Subject, step: Training, facts: dict[str, Json]) -> Iterator[Reading]:
    device = subject.device
    first, _ = _peaks(device, step)
    steady, reserved = _peaks(device, step)  # gradients and momentum exist
    peak = max(steady.values())
    facts |= {"counted": "the device's allocator", "phases": steady, **_prediction(subject)}
    yield one("train_memory", "train", "B", peak, **facts)
    yield one("train_memory_reserved", "train", "B", reserved)
    yield one("train_memory_first", "train", "B", max(first.values()), phases=first)
    if "predicted" in facts:
        yield one("train_memory_unpredicted", "train", "B", peak - facts["predicted"], predicted=facts["predicted"])


def _peaks(device: Device, step: Training) -> tuple[dict[str, int], int]:
    """The allocator's peak in each phase of one step, and the most it held in reserve."""
    peaks: dict[str, int] = {}
    reserved = 0
    running = ""

    def enter(phase: str) -> None:
        nonlocal running, reserved
        device.synchronize()
        if running:
            peaks[running] = device.memory_peak()
        reserved = max(reserved, device.memory_reserved())
        device.memory_reset()
        running = phase

    step(enter)
    enter("")
    return peaks, reserved


def _prediction(subject: Subject) -> dict[str, Json]:
    """The same step on fake tensors, where the model runs on them; else the reason."""
    try:
        predicted = predict(subject)
    except Unsupported as reason:
        return {"not_predicted": reason.problem}
    return {
        "predicted": predicted.peak,
        "predicted_phases": dict(predicted.phases),
        "assumptions": assumptions(subject),
    }
