"""Work captured once and replayed as a whole: CUDA graphs, and XPU graphs, which have the same interface.

What the host does for every launch is then done once for all of them. The recipe is that of torch's notes on CUDA
(section "CUDA Graphs"): warm up on a side stream, so that libraries have chosen their algorithms and the allocator
holds what is needed, then capture on such a stream, then replay on the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from harness.errors import Unsupported

WARMUP = 3
"""Steps before a capture, as many as torch's notes take."""


@dataclass(frozen=True)
class Replay:
    """A captured step. It keeps what the graph reads (held by `step`) and what it writes alive and in place."""

    graph: Any
    step: Callable[[], object]
    output: object

    def __call__(self) -> object:
        self.graph.replay()
        return self.output


def can_capture(kind: str) -> bool:
    """Whether torch's module for this kind of device has graphs (mps has none)."""
    return hasattr(torch.get_device_module(kind), _class_name(kind))


def capture(device: torch.device, step: Callable[[], object]) -> Replay:
    """`step` as a graph on `device`, which is the current one. Raises Unsupported where it cannot be captured."""
    module = torch.get_device_module(device.type)
    side = module.Stream(device)
    side.wait_stream(module.current_stream(device))
    with module.stream(side):
        for _ in range(WARMUP):
            step()
    module.current_stream(device).wait_stream(side)
    graph = getattr(module, _class_name(device.type))()
    try:
        # with a stream of its own: torch's default one belongs to the device of the process's first capture
        with module.graph(graph, stream=side):
            output = step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:  # the same step has just run three times: it is the capture that it does not bear
        raise Unsupported(
            f"this step cannot be captured as a graph: {str(problem).splitlines()[0]}",
            remedy="leave graph out for models that wait for the device or look at values",
        ) from problem
    return Replay(graph, step, output)


def _class_name(kind: str) -> str:
    return f"{kind.upper()}Graph"
