"""Memory without a device: bytes kept for backward, live storages of real and fake steps, building on meta."""

from harness.memory.meta import build_on_meta, meta_copy, to_fake
from harness.memory.saved import saved_bytes
from harness.memory.steps import StepBytes, peak_step_bytes
from harness.memory.tracker import GRANULE, StorageTracker, live_bytes

__all__ = [
    "GRANULE",
    "StepBytes",
    "StorageTracker",
    "build_on_meta",
    "live_bytes",
    "meta_copy",
    "peak_step_bytes",
    "saved_bytes",
    "to_fake",
]
