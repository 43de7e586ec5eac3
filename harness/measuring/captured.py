"""A captured step that is known to do what the step does: compared with it on other values before anything is timed.

A capture records what is launched on its stream. A library that launches elsewhere (torchvision 0.26's deformable
convolution takes the device's default stream) does its work once, while the capture is made, and never in a replay:
the replay is then fast and wrong, and nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.devices import Device
from harness.errors import Unsupported

CLOSE = 0.02
"""Relative L2 distance. Other algorithms and half precision make a thousandth, work left out tens of per cent."""


def captured(
    device: Device, step: Callable[[], object], x: Tensor, state: Callable[[], Sequence[Tensor]] = lambda: ()
) -> Callable[[], object]:
    """`step` as a graph of `device`, compared with `step` itself on another `x`; Unsupported where they differ.

    `x` is what `step` reads, `state` gives the tensors that it changes in place, if any: both are as before afterwards.
    """
    replay = device.capture(step)
    x.neg_()
    try:
        distance = _distance(_outcome(replay, state), _outcome(step, state))
    finally:
        x.neg_()
    if distance > CLOSE:
        raise Unsupported(
            f"a replay of the captured step computes something else ({distance:.1g} apart): part of its work is "
            "launched where a capture does not see it",
            remedy="leave graph out for this model",
        )
    return replay


@torch.no_grad()
def _outcome(step: Callable[[], object], state: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    """What `step` returns and by how much it changes `state`, which is put back."""
    before = [tensor.clone() for tensor in state()]
    with torch.enable_grad():
        output = step()
    found = [output.clone()] if isinstance(output, Tensor) else []
    for tensor, was in zip(state(), before, strict=True):
        if tensor.is_floating_point():
            found.append(tensor - was)
        tensor.copy_(was)
    return found


def _distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Relative L2 distance of all of it together; infinite and undefined numbers count as 0, in both."""
    pairs = [[one.double().nan_to_num(0, 0, 0) for one in pair] for pair in zip(found, wanted, strict=True)]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    scale = sum(float(b.square().sum()) for _, b in pairs)
    return (error / scale) ** 0.5 if scale else float(error > 0)
