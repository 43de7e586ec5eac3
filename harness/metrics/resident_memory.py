"""Peak resident memory of a training process, in bytes, as the operating system counts it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

from harness.errors import Unsupported
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.measuring.training_step import Training
from harness.quantity import Quantity
from harness.records import Kind, Reading, TaskKind

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
"""Written to clear_refs it begins a new VmHWM at what is resident now: proc(5)."""


@metric(
    "resident_memory",
    TaskKind.CELL,
    Quantity("resident_memory", "B", Kind.SAMPLED, what="peak resident memory of two training steps, over the start's"),
)
def resident_memory(subject: Subject) -> Iterable[Reading]:
    """Peak resident memory of the process over two training steps, less what was resident before the model was built.

    Libraries, workspaces and what the allocator keeps are in it, so it is not a count: it differs from run to run.
    """
    gc.collect()
    before = _begin()
    step = Training.of(subject)
    for _ in range(2):
        step()
        subject.device.synchronize()
    peak = _resident("VmHWM")
    yield one("resident_memory", "train", "B", peak - before, process_before=before, process_peak=peak)


def _begin() -> int:
    """Give back what the allocator kept of earlier work in this process, forget the peak so far; bytes resident now."""
    with contextlib.suppress(AttributeError, OSError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text(FORGET_PEAK)
        return _resident("VmRSS")
    except OSError as problem:
        raise Unsupported(
            f"this system does not let a process measure its own peak anew ({problem})",
            remedy="measure on Linux with /proc writable, or use train_memory",
        ) from problem


def _resident(field: str) -> int:
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")
