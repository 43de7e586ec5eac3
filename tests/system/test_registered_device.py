"""The accelerator path without an accelerator: a device registered in Python trains ResNet-18 as the CPU does.

torch's registration is for good, so the device lives in its own process: this file, run as a script. Waiting,
events and memory statistics cannot be registered that way; the script replaces exactly these few functions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest


@pytest.mark.slow
def test_a_device_registered_in_python_trains_like_the_cpu_through_the_accelerator_path():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["available"] is None
    assert found["name"] == "fakegpu"
    assert found["parameter_device"] == "fakegpu:0"
    assert found["losses"] == found["cpu_losses"]
    assert found["log"] == ["record", "record", "synchronize", "elapsed"]
    assert found["seconds"] > 0
    assert "does not count tensor memory" in found["refusal"]
    assert found["swapped_on_device"] == ["fakegpu:0"]
    assert found["fusion_error"] < 1e-5


def register() -> None:
    import torch
    from torch.utils._pytree import tree_map
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("fakegpu")

    class Wrapped(torch.Tensor):
        """A tensor that says it is on fakegpu:0 and keeps its values on the CPU."""

        inner: torch.Tensor

        @staticmethod
        def __new__(cls: Any, inner: torch.Tensor) -> Any:
            return torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="fakegpu:0"
            )

        def __init__(self, inner: torch.Tensor) -> None:
            self.inner = inner

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["inner"], None  # makes `module.to` swap parameters instead of copying into them

        @staticmethod
        def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> Wrapped:
            return Wrapped(inner["inner"])

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given: dict[int, Wrapped] = {}

            def unwrap(value: Any) -> Any:
                if isinstance(value, Wrapped):
                    given[id(value.inner)] = value
                    return value.inner
                return torch.device("cpu") if isinstance(value, torch.device) else value

            def wrap(value: Any) -> Any:
                if not isinstance(value, torch.Tensor) or isinstance(value, Wrapped):
                    return value
                # an operator in place returns its argument
                return given[id(value)] if id(value) in given else Wrapped(value)

            kwargs = kwargs or {}
            target = kwargs.get("device")
            result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
            leaves_device = target is not None and torch.device(target).type == "cpu"
            return result if leaves_device else tree_map(wrap, result)

    def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, *_: Any, **__: Any) -> Any:
        return Wrapped(torch.empty(size, dtype=dtype, device="cpu"))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Any:
        return Wrapped(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def copy_from(source: Any, target: Any, *_: Any) -> Any:
        values = source.inner if isinstance(source, Wrapped) else source
        (target.inner if isinstance(target, Wrapped) else target).copy_(values)
        return target

    library = torch.library.Library("aten", "IMPL")
    for name, kernel in (("empty.memory_format", empty), ("empty_strided", empty_strided), ("_copy_from", copy_from)):
        library.impl(name, kernel, "PrivateUse1")
    fallthrough = torch.library.Library("_", "IMPL")
    fallthrough.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    globals()["_kept_alive"] = (library, fallthrough)


def main() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from harness.devices import Clock, get
    from harness.devices.accelerator import AcceleratorDevice
    from harness.errors import Unsupported
    from harness.models import build, fuse, randomize_statistics, swap

    register()
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])

    class Registered(AcceleratorDevice):
        kind = "fakegpu"

        def __init__(self) -> None:
            super().__init__()
            self.log: list[str] = []

        def synchronize(self) -> None:
            self.log.append("synchronize")

        def record(self) -> Any:
            self.log.append("record")
            return perf_counter()

        def elapsed(self, start: Any, end: Any) -> float:
            self.log.append("elapsed")
            return float(end - start)

        def _statistics(self) -> dict[str, Any]:
            return {}  # as torch answers where the allocator keeps none

    def train(place: torch.device, time: Callable[..., float]) -> tuple[list[float], float, str]:
        torch.manual_seed(0)
        model = build("resnet18", num_classes=10).to(place)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
        x, y = images.to(place), labels.to(place)
        losses = []

        def step() -> None:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

        seconds = time(step, repeats=2)
        return [float(loss.cpu()) for loss in losses], seconds, str(next(model.parameters()).device)

    device = Registered()
    with device.configured():
        losses, seconds, where = train(device.torch_device, Clock(device).time)
        block = randomize_statistics(swap(build("layer", c_in=4, c_out=4).to(device.torch_device), "repvgg"))
        x = torch.randn(1, 4, 9, 9).to(device.torch_device)
        wanted, got = block.eval()(x).cpu(), fuse(block)(x).cpu()
    try:
        device.memory_peak()
        refusal = ""
    except Unsupported as error:
        refusal = error.problem
    found = {
        "available": device.available(),
        "name": device.name,
        "parameter_device": where,
        "losses": losses,
        "cpu_losses": train(torch.device("cpu"), Clock(get("cpu")).time)[0],
        "seconds": seconds,
        "log": device.log,
        "refusal": refusal,
        "swapped_on_device": sorted({str(parameter.device) for parameter in fuse(block).parameters()}),
        "fusion_error": float((got - wanted).detach().abs().max() / wanted.detach().abs().max()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
