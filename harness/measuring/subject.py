"""What a cell builds: the model in both forms, its input, its loss, its optimizer, on its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from harness import blocks, devices
from harness.catalog.vocabulary import OPTIMIZERS
from harness.errors import Unsupported
from harness.models import NothingToFold, fuse, swap
from harness.models.nets import backbones
from harness.records import Cell, Form
from harness.training import custom_l2
from harness.training import rep_optimizers as repopt
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

    @property
    def is_layer(self) -> bool:
        """A single convolution: the block itself is the model."""
        return self.cell.backbone.name == "layer"

    @property
    def has_classes(self) -> bool:
        """Whether the output is logits. A layer's is a map, a super-resolution network's an image."""
        return backbones.has_classes(self.cell.backbone.name)

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
            if on_device and self.device.kind == "cuda":
                stack.enter_context(_float32_products("tf32" if self.cell.dtype == "tf32" else "ieee"))
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
        if self.is_layer:
            sizes = {"c_in": 64, "c_out": 64, **cell.backbone.options}
            return blocks.create(cell.block.name, kernel_size=cell.kernel_size or 3, **sizes, **cell.block.options)
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
        name, options = cell.backbone.name, cell.backbone.options
        channels = options.get("c_in", 64) if self.is_layer else backbones.image_channels(name)
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
        if not self.cell.optimizer.options.get("custom_l2"):
            return loss
        return loss + custom_l2.penalty(model, optimizer_options(self.cell)["weight_decay"])

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The cell's optimizer, its implementation set explicitly from the target device."""
        return make_optimizer(self.cell, model)


def optimizer_options(cell: Cell) -> dict[str, Any]:
    """Every option of the cell's optimizer, defaults filled in, `implementation` included."""
    declared: dict[str, Any] = OPTIMIZERS[cell.optimizer.name]
    options = {name: cell.optimizer.options.get(name, entry["default"]) for name, entry in declared.items()}
    if options["implementation"] is None:
        # what torch itself would choose there; named, so that a prediction for another device can follow it
        options["implementation"] = "foreach" if cell.device.name.startswith(("cuda", "xpu")) else "single"
    base: dict[str, Any] = OPTIMIZERS.get(options.get("base", ""), {})
    for name in options.keys() & base.keys():
        if options[name] is None:
            options[name] = base[name]["default"]
    return options


def make_optimizer(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    """The cell's optimizer for `model`. repopt also gives the model the initial weights of the branches it imagines.

    Raises Unsupported where the model has nothing that an option is for.
    """
    options = optimizer_options(cell)
    implementation = options.pop("implementation")
    options |= {"foreach": implementation == "foreach", "fused": implementation == "fused"}
    if cell.optimizer.name == "repopt":
        return _imagining(cell, model, options)
    if options.pop("custom_l2", False):
        if not options["weight_decay"]:
            raise Unsupported("custom_l2 is a weight decay, and that is 0", remedy="write weight_decay: 1e-4 beside it")
        return torch.optim.SGD(custom_l2.parameter_groups(model), **options)
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer: torch.optim.Optimizer = classes[cell.optimizer.name](model.parameters(), **options)
    return optimizer


def _imagining(cell: Cell, model: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    """repopt in the form of its base, and the model begun as it imagines."""
    scales = repopt.default_scales(model)
    repopt.initialize(scales)
    if options.pop("base") == "sgd":
        return repopt.RepSGD(model.parameters(), scales, **options)
    for name in ("momentum", "nesterov"):
        if options.pop(name) and name in cell.optimizer.options:
            raise Unsupported(f"AdamW has no {name}", remedy=f"leave {name} out, or use base: sgd")
    return repopt.RepAdamW(model.parameters(), scales, **options)


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """How CUDA multiplies float32: "ieee" or "tf32", for matrix products and convolutions alike."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
