"""What dynamic convolutions have in common: kernels of its own for every sample of the batch, and how to apply them.

    y_n = bn(W_n * x_n),   W_n made from x_n

All samples are convolved at once: (N, C, H, W) is read as one sample of N C channels in N groups. The kernels of a
1x1 layer that looks at every pixel of one group are matrices, and go to a batched product instead; so do those of wide
layers on small maps, whose windows are then laid out first. There one grouped convolution took 2.3 times as long to
train and up to 6 times as long to run (512 channels, 8 samples, 7x7 and 3x3 pixels, one CPU thread): it rearranges
every kernel before it uses it for a few pixels.

Experts and other sources of kernels are stored flat, (n, elements): a tensor of five axes cannot be put into
channels_last with the rest of a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import Block, ConvSpec
from harness.blocks.declared import Choice, Problem
from harness.errors import Unsupported

Norm = Literal["batch", "layer", "none"]
"""Of the squeezed vector in an attention. `layer` and `none` train with a batch of one, `batch` does not."""


def convolve_each(x_NCHW: Tensor, weight_NOIHW: Tensor, spec: ConvSpec) -> Tensor:
    """Each sample with its own kernel: weight (N, c_out, c_in / groups, k, k) -> (N, c_out, H', W').

    Differentiable in both; strides, padding, dilation and groups as the spec says.
    """
    batch, _, rows, columns = x_NCHW.shape
    out = [_outputs(spec, side) for side in (rows, columns)]
    if spec.groups == 1 and (_sees_pixels(spec) or FEW * out[0] * out[1] <= spec.c_out):
        return torch.bmm(weight_NOIHW.flatten(2), _windows(x_NCHW, spec)).reshape(batch, spec.c_out, *out)
    weight = weight_NOIHW.reshape(-1, *weight_NOIHW.shape[2:])
    x = x_NCHW.reshape(1, -1, rows, columns)  # reshape, not view: the input may be channels_last
    y = F.conv2d(x, weight, None, spec.stride, spec.padding, spec.dilation, spec.groups * batch)
    return y.reshape(batch, spec.c_out, *out)


FEW = 4
"""Output channels for each output pixel from which on windows are laid out; they are a quarter of the kernels then, at
most. With 5 to 10 that was faster, with 2.6 both ways took as long, with 1.3 it was slower."""


def _outputs(spec: ConvSpec, side: int) -> int:
    return (side + 2 * spec.padding - spec.dilation * (spec.kernel_size - 1) - 1) // spec.stride + 1


def _sees_pixels(spec: ConvSpec) -> bool:
    """Whether the map is its own windows."""
    return spec.kernel_size == spec.stride == 1 and spec.padding == 0


def _windows(x_NCHW: Tensor, spec: ConvSpec) -> Tensor:
    """(N, c_in k k, outputs)."""
    if _sees_pixels(spec):
        return x_NCHW.flatten(2)
    return F.unfold(x_NCHW, spec.kernel_size, spec.dilation, spec.padding, spec.stride)


class PerSampleBlock(Block):
    """A block whose kernel depends on the sample: not fusable. y = bn(convolve(x)).

    A subclass makes its modules after `super().__init__(spec, **options)`, `self.bn` among them, and says
    `convolved`. What it spends on kernels it does inside `KernelWork`, so that it is counted apart.
    """

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__(spec, **options)
        self.bn: nn.Module = nn.BatchNorm2d(spec.c_out)

    @classmethod
    def problems(cls) -> Iterator[Problem]:
        yield from super().problems()
        if cls.convolved is PerSampleBlock.convolved and cls.forward is PerSampleBlock.forward:
            yield "it convolves nothing", "write def convolved(self, x_NCHW: Tensor) -> Tensor"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.convolved(x_NCHW))
        return y_NCHW

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        """The block without its batch norm."""
        raise NotImplementedError


class KernelWork(nn.Module):
    """Marks a module whose products make kernels: `macs` counts them apart, elementwise ones included."""


class MapWork(nn.Module):
    """Marks a module whose elementwise products are a convolution's own work on the map: `macs` counts them."""


class Mix(KernelWork):
    """sum_n a_n W_n for many rows at once: attention (rows, n) and experts (n, elements) -> (rows, elements)."""

    def forward(self, attention: Tensor, experts: Tensor) -> Tensor:
        return attention.to(experts.dtype) @ experts


class Scale(KernelWork):
    """Kernels times what broadcasts to them."""

    def forward(self, kernels: Tensor, factor: Tensor) -> Tensor:
        return kernels * factor


def pooled(x_NCHW: Tensor) -> Tensor:
    """The mean over the map: (N, C)."""
    return x_NCHW.mean((2, 3))


def vector_norm(kind: Norm, width: int) -> nn.Module:
    """A norm of vectors (N, width)."""
    if kind == "batch":
        return VectorBatchNorm(width)
    return nn.LayerNorm(width) if kind == "layer" else nn.Identity()


class VectorBatchNorm(nn.BatchNorm1d):
    """A batch norm of vectors (N, width), or of (N, width, L), that refuses by name what it cannot be trained on.

    Raises Unsupported in training for a single value per channel.
    """

    def forward(self, x_NC: Tensor) -> Tensor:
        if self.training and x_NC.shape[0] == 1 and x_NC.shape[2:].numel() == 1:
            raise Unsupported(
                "an attention's batch norm cannot be trained on a batch of 1: a single value has no variance",
                remedy="use a batch of 2 or more, or the block's option attention_norm: layer (or none)",
            )
        return super().forward(x_NC)


class Schedule:
    """A temperature that falls linearly from `start` to `end` over the first `epochs` of `of` epochs.

    `of` is the length of the paper's training: a shorter one anneals over the same share of it.
    """

    def __init__(self, start: float, end: float, epochs: int, of: int) -> None:
        self.start, self.end, self.epochs, self.of = start, end, epochs, of

    def at(self, step: int, steps: int) -> float:
        """The temperature of the `step`-th batch, counted from 1, when it takes `steps` batches to reach `end`."""
        return self.end + (self.start - self.end) * max(0.0, 1 - step / steps) if steps else self.end


class Tempered(nn.Module):
    """A module with a temperature, which is part of its state; `harness.training.Annealing` steps it, nothing else.

    It stands at the schedule's end until a training begins, so an untrained or loaded block is ready for inference.
    """

    training_rules = ("annealing",)

    schedule: Schedule
    temperature: Tensor

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("temperature", torch.tensor(float(schedule.end)))

    def set_temperature(self, value: float) -> None:
        self.temperature.fill_(value)

    def _apply(self, fn: Any, recurse: bool = True) -> Tempered:
        """Casting a model leaves the temperature in float32: bfloat16 rounds 1 - 1/500 to 1."""
        before = self.temperature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.temperature.dtype != torch.float32:
            exact = before if before.dtype == torch.float32 else self.temperature
            self.temperature = exact.to(self.temperature.device, torch.float32)
        return self
