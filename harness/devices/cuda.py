"""cuda: what NVIDIA's cards have beside other accelerators: cuDNN, TensorFloat-32, telemetry, a driver's version."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch

from harness.devices import nvidia
from harness.devices.accelerator import AcceleratorDevice
from harness.devices.base import Precision, Switch, register
from harness.records import Json


@register
class CudaDevice(AcceleratorDevice):
    """NVIDIA (or ROCm) cards. The precision of float32 products is the dtype axis's matter, not an option here."""

    kind = "cuda"
    what = "NVIDIA (or ROCm) GPU; cuda:1 names the second"
    place = 1
    OPTIONS: ClassVar[Mapping[str, Switch]] = {
        "cudnn_benchmark": Switch(False, "let cuDNN time its algorithms first (cuda only)")
    }
    implementation = "foreach"
    float32_products = ("ieee", "tf32")
    telemetry_package = "nvidia-ml-py"

    @contextmanager
    def configured(self) -> Iterator[None]:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.options["cudnn_benchmark"]
        try:
            with super().configured():
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    @contextmanager
    def multiplying(self, precision: Precision) -> Iterator[None]:
        matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn

    @cached_property
    def _card(self) -> nvidia.Card:
        return nvidia.Card(self._properties())

    def telemetry(self) -> dict[str, Json]:
        return self._card.read()

    def state(self) -> dict[str, Json]:
        return self._card.state()

    def suspicious(self, telemetry: Mapping[str, Json]) -> str | None:
        return nvidia.suspicious(telemetry)

    def facts(self) -> dict[str, Json]:
        """As of any accelerator; cuDNN's switches as they are while work is timed; why there is no telemetry."""
        cudnn = torch.backends.cudnn
        switches = {
            "version": cudnn.version(),  # type: ignore[no-untyped-call]
            "benchmark": self.options["cudnn_benchmark"],
            "deterministic": cudnn.deterministic,
            # what holds where the dtype axis says nothing else: float32 switches it off, tf32 on
            "allow_tf32": cudnn.allow_tf32,
        }
        return {**super().facts(), "cudnn": switches, "no_telemetry": self._card.absent}

    def _driver(self, properties: Any) -> str | None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={self.torch_device.index}"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()
