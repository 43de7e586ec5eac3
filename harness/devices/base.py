"""What a device is: what its kind declares to planning, and what is asked of it while work is measured.

A kind of device is one file of this folder, a class that says what its kind is called and how it differs:

    @register
    class NpuDevice(AcceleratorDevice):
        kind = "npu"
        what = "what `harness list devices` says of it"
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch

from harness.errors import HarnessError, Unsupported
from harness.records import Json
from harness.registry import Registry, unknown

UNKNOWN_CACHE = 2**28
"""Bytes taken for a last-level cache whose size nobody tells: a buffer of twice that exceeds every GPU's of today."""


Precision = Literal["ieee", "tf32"]
"""How float32 is multiplied: as the standard says, or with TensorFloat-32's short mantissa."""


@dataclass(frozen=True)
class Switch:
    """An option of a device, True or False, and what it is when nobody says."""

    default: bool
    what: str


class Device(ABC):
    """A place where tensors live and work is timed. What a kind declares are class attributes.

    `options` are switches that hold while the device is `configured()`, for example ``cudnn_benchmark``;
    a name that the device does not have raises UnknownName, a value that is not a bool HarnessError.
    """

    kind: ClassVar[str]
    """Its name, as a suite writes it without an index."""
    what: ClassVar[str]
    """What it is, in a few words, for lists."""
    place: ClassVar[int] = 100
    """Where the kind stands in lists, small ones first; kinds with the same place by name."""
    OPTIONS: ClassVar[Mapping[str, Switch]] = {}
    """The switches of this kind."""
    is_host: ClassVar[bool] = False
    """Whether it is the processor that the program itself runs on: work is done when a call returns."""
    indexed: ClassVar[bool] = False
    """Whether there may be several, told apart by an index: ``cuda:1``. The constructor then takes `index`."""
    batch_size: ClassVar[int] = 64
    """Images in a batch when a suite does not say."""
    image_size: ClassVar[int] = 224
    """Pixels of an image's side when a suite does not say."""
    implementation: ClassVar[str] = "single"
    """Of an optimizer, as torch itself would choose it there."""
    float32_products: ClassVar[tuple[Precision, ...]] = ("ieee",)
    """What `multiplying` can switch to."""
    identity: ClassVar[tuple[str, ...]] = ("model", "threads", "driver")
    """What a fingerprint must know, or times are not compared: a card without its driver's version could have any."""
    telemetry_package: ClassVar[str | None] = None
    """The optional package that reads `telemetry`; None where none is needed, or there is no telemetry."""

    def __init__(self, **options: Json) -> None:
        for name, value in options.items():
            if name not in self.OPTIONS:
                raise self._no_option(name)
            if not isinstance(value, bool):
                raise HarnessError(f"{self.kind}: {name} is {value!r}", remedy=f"use {name}: true or {name}: false")
        self.options: dict[str, bool] = {name: switch.default for name, switch in self.OPTIONS.items()} | options
        self._passed_through: torch.Tensor | None = None

    def _no_option(self, name: str) -> HarnessError:
        if self.OPTIONS:
            return unknown(f"option of device {self.kind}", name, self.OPTIONS)
        return Unsupported(f"device {self.kind} has no option {name!r}", remedy="leave it out")

    @property
    @abstractmethod
    def torch_device(self) -> torch.device:
        """Where tensors are put."""

    @property
    def name(self) -> str:
        """As a suite writes it: ``cpu``, ``cuda``, ``cuda:1``."""
        return self.kind

    @abstractmethod
    def available(self) -> str | None:
        """None when it can be used here, otherwise the reason in one sentence."""

    @contextmanager
    def configured(self) -> Iterator[None]:
        """The device's options, and the device as the current one, for the length of a `with`."""
        yield

    def multiplying(self, precision: Precision) -> AbstractContextManager[None]:
        """float32 products, of matrices and convolutions alike, in one of `float32_products` for a `with`."""
        return nullcontext()

    @abstractmethod
    def synchronize(self) -> None:
        """Return when everything launched so far is done."""

    @abstractmethod
    def record(self) -> Any:
        """A mark in the device's own order of work; never waits."""

    @abstractmethod
    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two marks, once the device has been synchronised after the second."""

    def cache_bytes(self) -> int | None:
        """Bytes of the last-level cache, all of its parts together; None when that is not known."""
        return None

    def flush(self) -> None:
        """Launch what drives everything else out of the last-level cache, a processor's program included; never waits.

        A buffer of twice the cache is read and written, and kept for the next time. Read as well, because a
        processor may write a large buffer past its caches.
        """
        if self._passed_through is None:
            size = 2 * (self.cache_bytes() or UNKNOWN_CACHE)
            self._passed_through = torch.zeros(-(-size // 4), dtype=torch.int32, device=self.torch_device)
        self._passed_through.add_(1)

    def capture(self, step: Callable[[], object]) -> Callable[[], object]:
        """A call that launches, all at once, the work that `step` launches; it returns the same tensors every time.

        `step` runs a few times before and once for the capture; what it reads must stay where it is. Raises
        Unsupported where the device has no such thing, or `step` waits for the device or looks at values.
        """
        raise Unsupported(
            f"device {self.kind} cannot capture work and replay it", remedy="leave graph out, or use cuda or xpu"
        )

    def telemetry(self) -> dict[str, Json]:
        """What the hardware says of itself now, in SI units; empty where it says nothing. Not for timed stretches."""
        return {}

    def state(self) -> dict[str, Json]:
        """`telemetry`, how busy others keep the device and what is suspicious; empty where it says nothing."""
        return self.telemetry()

    def suspicious(self, telemetry: Mapping[str, Json]) -> str | None:
        """Why a time taken while `telemetry` was read is not to be trusted, in a few words; None when it is."""
        return None

    @abstractmethod
    def memory_now(self) -> int:
        """Bytes of live tensors. Raises Unsupported where the device does not count them."""

    @abstractmethod
    def memory_peak(self) -> int:
        """The most bytes of live tensors since `memory_reset`. Raises Unsupported as `memory_now`."""

    @abstractmethod
    def memory_reserved(self) -> int:
        """The most bytes the allocator held, used or not, since `memory_reset`. Raises Unsupported as `memory_now`."""

    @abstractmethod
    def memory_reset(self) -> None:
        """Begin new peaks at what is there now. Raises Unsupported as `memory_now`."""

    def limit_memory(self, limit: int) -> None:
        """Let this process's allocations beyond `limit` bytes fail, counted from now, for good."""
        raise Unsupported(f"{self.name} cannot be held to an amount of memory", remedy="use a prediction")

    def empty_cache(self) -> None:
        """Give back what the allocator keeps in reserve; nothing where there is no such reserve."""
        return

    @abstractmethod
    def facts(self) -> dict[str, Json]:
        """What identifies it for a reader a year later; plain JSON, sizes in bytes."""


DEVICES: Registry[type[Device]] = Registry("device")

D = TypeVar("D", bound=type[Device])


def register(device: D) -> D:
    """Let suites name this kind of device. Raises TypeError, saying what is missing, if it declares too little."""
    for name in ("kind", "what"):
        if not hasattr(device, name):
            raise TypeError(f'{device.__name__} does not say its {name}: write {name} = "..." into the class')
    DEVICES.register(device.kind)(device)
    return device


def kinds() -> list[str]:
    """The names of all kinds, in the order of lists."""
    return sorted(DEVICES, key=lambda kind: (DEVICES[kind].place, kind))


def declaration(kind: str) -> dict[str, Json]:
    """What planning must know of a kind without torch, as plain JSON. Raises UnknownName."""
    device = DEVICES[kind]
    return {
        "what": device.what,
        "options": {
            name: {"choices": [True, False], "default": switch.default, "what": switch.what}
            for name, switch in device.OPTIONS.items()
        },
        "host": device.is_host,
        "indexed": device.indexed,
        "batch_size": device.batch_size,
        "image_size": device.image_size,
        "float32_products": list(device.float32_products),
        "identity": list(device.identity),
        "telemetry_package": device.telemetry_package,
    }
