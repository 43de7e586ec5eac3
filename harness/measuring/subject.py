"""What a cell builds: the model in both forms, its input, its loss, its optimizer, on its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from harness import blocks, devices
from harness.models import NothingToFold, fuse, swap
from harness.models.nets import backbones
from harness.models.nets.base import Backbone
from harness.records import Cell, Form
from harness.training import optimizers
from harness.training.optimizers import OptimizerFactory
from harness.where import parse as parse_where

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "amp_float16": torch.float32,
    "amp_bfloat16": torch.float32,
}
"""Of weights and inputs."""
AUTOCAST = {"amp_float16": torch.float16, "amp_bfloat16": torch.bfloat16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CLASSES = 1000
"""Of a backbone's head when its cost is measured: as published."""


class Subject:
    """A cell come to life. Each `model` is built anew from the seed, so that metrics cannot disturb each other."""

    def __init__(self, cell: Cell, seed: int = 0) -> None:
        self.cell = cell
        self.seed = seed
        self.device = devices.get(cell.device.name, **cell.device.options)

    @cached_property
    def backbone(self) -> Backbone:
        """What is known of the cell's backbone without building it. Raises UnknownName for one that does not exist."""
        return backbones.find(self.cell.backbone.name)

    @property
    def has_classes(self) -> bool:
        """Whether the output is logits. A layer's is a map, a super-resolution network's an image."""
        return self.backbone.has_classes

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """Train and fused; train alone where nothing folds, as in a layer whose kernel is another for every sample."""
        if self.cell.block.name not in blocks.BLOCKS or blocks.BLOCKS[self.cell.block.name].fusable():
            return ("train", "fused")
        with torch.device("meta"):
            model = self.bare_model()
        try:
            fuse(model.eval())
        except NothingToFold:
            return ("train",)
        return ("train", "fused")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.cell.dtype]

    @contextmanager
    def settings(self, on_device: bool = True) -> Iterator[None]:
        """Threads, device options and float32 precision as the cell wants them, for the length of a `with`.

        With `on_device` False the device is left alone: it need not be there.
        """
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            if on_device:
                stack.enter_context(self.device.configured())
            if self.cell.threads is not None:
                torch.set_num_threads(self.cell.threads)
                stack.callback(torch.set_num_threads, threads)
            if on_device:
                stack.enter_context(self.device.multiplying("tf32" if self.cell.dtype == "tf32" else "ieee"))
            yield

    def autocast(self, device_type: str | None = None) -> AbstractContextManager[Any]:
        """What a forward runs in: autocast for the dtypes that are called amp_*, nothing for the others."""
        dtype = AUTOCAST.get(self.cell.dtype)
        if dtype is None:
            return nullcontext()
        return torch.autocast(device_type or self.device.torch_device.type, dtype)

    def bare_model(self, classes: int = CLASSES) -> nn.Module:
        """The train form in float32 on the current default device (`torch.device("meta")` works), seeded."""
        torch.manual_seed(self.seed)
        cell = self.cell
        if self.backbone.single is not None:
            place = self.backbone.single.place(cell.kernel_size, cell.backbone.options)
            return blocks.create(cell.block.name, **place, **cell.block.options)
        model = backbones.build(cell.backbone.name, num_classes=classes, **cell.backbone.options)
        rule = parse_where(cell.where)
        model = swap(model, cell.block.name, where=rule, kernel_size=cell.kernel_size, **cell.block.options)
        if cell.checkpointing:
            backbones.checkpoint_activations(model)
        return model

    def placed(self, model: nn.Module) -> nn.Module:
        """`model` on the cell's device, in its dtype and memory format."""
        return model.to(self.device.torch_device, self.dtype).to(memory_format=FORMATS[self.cell.memory_format])

    def model(self, form: str = "train", classes: int = CLASSES) -> nn.Module:
        """A new model: the train form in train mode, or the fused form in eval mode."""
        model = self.bare_model(classes)
        if form == "train":
            return self.placed(model).train()
        # folded before it is cast: folding in half precision would measure the rounding of the fold
        return self.placed(fuse(model.eval())).eval()

    def input_shape(self, batch: int | None = None) -> tuple[int, int, int, int]:
        """(N, C, H, W); `batch` images, by default the cell's."""
        cell = self.cell
        channels = self.backbone.channels(cell.backbone.options)
        return (batch or cell.batch_size, channels, cell.image_size, cell.image_size)

    def input(self, batch: int | None = None) -> Tensor:
        """Normal noise, (batch, channels, image_size, image_size), the same for every variant of a group."""
        cell = self.cell
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.input_shape(batch), generator=generator)
        return x.to(self.device.torch_device, self.dtype, memory_format=FORMATS[cell.memory_format])

    def target(self, batch: int | None = None) -> Tensor:
        """A class for every image, (batch,), int64; without classes it is not looked at."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        labels = torch.randint(CLASSES, (batch or self.cell.batch_size,), generator=generator)
        return labels.to(self.device.torch_device)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy; where there are no classes the mean of squares of the output, a map or an image."""
        return nn.functional.cross_entropy(output, target) if self.has_classes else output.square().mean()

    def regularized(self, loss: Tensor, model: nn.Module) -> Tensor:
        """What a training step minimises: the loss, and what the optimizer's options want added to it."""
        return self._optimizer.regularized(loss, model)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The cell's optimizer, its implementation set explicitly from the target device."""
        return self._optimizer.create(model)

    @cached_property
    def _optimizer(self) -> OptimizerFactory:
        return chosen_optimizer(self.cell)


def chosen_optimizer(cell: Cell) -> OptimizerFactory:
    """The cell's optimizer, its implementation set explicitly from the target device.

    Named, although torch would choose the same there, so that a prediction for another device can follow it.
    """
    kind = devices.kind_of(cell.device.name)
    return optimizers.choose(cell.optimizer.name, cell.optimizer.options, kind.implementation)


def optimizer_options(cell: Cell) -> dict[str, Any]:
    """Every option of the cell's optimizer, `implementation` included; None for what follows from another one."""
    return asdict(chosen_optimizer(cell))


def make_optimizer(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    """The cell's optimizer for `model`; one of them also gives the model other initial weights (repopt).

    Raises Unsupported where the model has nothing that an option is for.
    """
    return chosen_optimizer(cell).create(model)
