"""Memory without a device: bytes kept for backward, live storages of real and fake steps, building on meta."""

from harness.memory.fakes import fake_tensors
from harness.memory.meta import build_on_meta, meta_copy, to_fake
from harness.memory.saved import Saved, saved_bytes, saved_storages
from harness.memory.steps import StepBytes, peak_step_bytes, pretend_first_step
from harness.memory.tracker import GRANULE, StorageTracker, live_bytes

__all__ = [
    "GRANULE",
    "Saved",
    "StepBytes",
    "StorageTracker",
    "build_on_meta",
    "fake_tensors",
    "live_bytes",
    "meta_copy",
    "peak_step_bytes",
    "pretend_first_step",
    "saved_bytes",
    "saved_storages",
    "to_fake",
]
