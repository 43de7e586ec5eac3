"""emulated: the processor under another name, one batch at a time as on a small board."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch

from harness.devices.base import Switch, register
from harness.devices.cpu import CpuDevice


@register
class EmulatedDevice(CpuDevice):
    """Computes on the CPU; `deterministic` holds torch to deterministic algorithms while work is measured."""

    kind = "emulated"
    what = "the processor, passing for a small board"
    place = 50
    batch_size = 2
    image_size = 32
    OPTIONS: ClassVar[Mapping[str, Switch]] = {"deterministic": Switch(False, "deterministic algorithms only")}

    @contextmanager
    def configured(self) -> Iterator[None]:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.options["deterministic"])
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
