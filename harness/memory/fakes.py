"""Programs without data: tensors that have shapes, strides and storages of a size, and no values.

What runs is the CPU's operator graph, whatever device a prediction is for: without a driver a fake `cuda` tensor
fails in backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_leaves

from harness.errors import Unsupported

HALF = (torch.bfloat16, torch.float16)

CANNOT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    NotImplementedError,
)
"""What torch raises for an operator whose result depends on values, or that nobody wrote for fake tensors."""

aten = torch.ops.aten
NORMS = {aten.native_batch_norm.default, aten.native_layer_norm.default, aten.native_group_norm.default}
"""Results: the output, the mean, one over the deviation."""


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Every tensor made inside is fake, and takes the room that the real one on the CPU would take.

    Raises Unsupported, naming the operator, where a program looks at values or uses an operator without a fake.
    """
    with _AsTheCpu() as mode:
        yield mode


class _AsTheCpu(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Puts right what torch's fake operators get wrong about the CPU's; seen with torch 2.14.

    A norm of a half-precision map with float32 parameters (autocast) keeps its statistics in float32, the fake one in
    half; the fake group norm's backward makes a float32 gradient of a half-precision map.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled; guarding against it costs a tenth of a prediction

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            result: Any = super().__torch_dispatch__(func, types, args, kwargs or {})
        except CANNOT as problem:
            raise Unsupported(
                f"operator {func} does not run on fake tensors ({type(problem).__name__})",
                remedy="measure train_memory on a device, where operators see values",
            ) from problem
        if func in NORMS and _mixed(args):
            output, *statistics = result
            return (output, *(_as(tensor, torch.float32) for tensor in statistics))
        if func is aten.native_group_norm_backward.default:
            gradient, *others = result
            return (_as(gradient, args[1].dtype), *others)
        return result


def _mixed(args: Sequence[Any]) -> bool:
    """Whether a norm's map is in half precision and a parameter or running statistic in float32."""
    map_, *others = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return map_.dtype in HALF and any(other.dtype == torch.float32 for other in others)


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """An empty tensor like it in another dtype; None (a gradient nobody asked for) stays."""
    return tensor if tensor is None or tensor.dtype == dtype else torch.empty_like(tensor, dtype=dtype)
