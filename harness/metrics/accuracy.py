"""Does the block learn, and does folding it change what it says: a short real training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from harness.data import DATASETS, as_images
from harness.errors import Unsupported
from harness.metrics.base import metric, one
from harness.metrics.subject import Subject
from harness.models import fuse
from harness.records import Form, Kind, Quantity, Reading, TaskKind

BOTH: tuple[Form, ...] = ("train", "fused")
OPTIONS = {
    "epochs": {"type": "integer", "default": 2, "minimum": 1, "what": "passes over the training images"},
    "batch_size": {"type": "integer", "default": 64, "minimum": 2, "what": "images per step"},
    "image_size": {"type": "integer", "default": 32, "minimum": 8, "what": "pixels the images are resized to"},
    "train_images": {"type": "integer", "default": 4000, "minimum": 100, "what": "the first so many are trained on"},
}
WARMUP_SHARE = 0.1
"""Of the steps; the rate rises linearly over them and falls to zero along a cosine."""


@metric(
    "accuracy",
    TaskKind.TRAINING,
    Quantity("accuracy", "fraction", Kind.SAMPLED, "higher", BOTH, "top-1 on the test images"),
    Quantity("changed_predictions", "1", Kind.SAMPLED, forms=("fused",), what="test images folding changes"),
    Quantity("train_loss", "1", Kind.SAMPLED, what="mean loss over the last tenth of the steps"),
    options=OPTIONS,
)
def accuracy(subject: Subject, epochs: int, batch_size: int, image_size: int, train_images: int) -> Iterable[Reading]:
    """Top-1 of the train form and of the fused form after a short training, and how many predictions changed."""
    if subject.is_layer:
        raise Unsupported("a single layer has no classes", remedy="measure accuracy on a backbone")
    if subject.cell.dtype == "amp_float16":
        raise Unsupported(
            "without loss scaling gradients vanish in float16", remedy="train with amp_bfloat16 or float32"
        )
    data = DATASETS[subject.cell.dataset.name]()
    device, dtype = subject.device.torch_device, subject.dtype
    train_x = as_images(data.train.images_NCHW[:train_images], image_size).to(device, dtype)
    test_x = as_images(data.test.images_NCHW, image_size).to(device, dtype)
    train_y, test_y = data.train.labels_N[:train_images].to(device), data.test.labels_N
    model = subject.model("train", classes=data.classes)
    losses = list(_train(subject, model, train_x, train_y, epochs, batch_size))
    trained = _predictions(subject, model.eval(), test_x)
    fused = _predictions(subject, subject.placed(fuse(model)).eval(), test_x)
    facts = {"epochs": epochs, "steps": len(losses), "test_images": len(test_y), "seed": subject.seed}
    for form, predicted in (("train", trained), ("fused", fused)):
        yield one("accuracy", form, "fraction", (predicted == test_y).double().mean().item(), **facts)  # type: ignore[arg-type]
    yield one("changed_predictions", "fused", "1", int((trained != fused).sum()))
    tail = losses[-max(1, len(losses) // 10) :]
    yield one("train_loss", "train", "1", sum(tail) / len(tail), first_loss=losses[0])


def _train(
    subject: Subject, model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch_size: int
) -> Iterator[float]:
    """The loss of every step. The order of the images depends on the seed alone, so variants see the same."""
    optimizer = subject.optimizer(model)
    order = torch.Generator().manual_seed(subject.seed)
    steps_per_epoch = max(1, len(labels) // batch_size)
    total = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    for _ in range(epochs):
        shuffled = torch.randperm(len(labels), generator=order)
        for i in range(steps_per_epoch):
            chosen = shuffled[i * batch_size : (i + 1) * batch_size].to(labels.device)
            optimizer.zero_grad(set_to_none=True)
            with subject.autocast():
                loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            yield loss.item()


def _rate(step: int, total: int) -> float:
    warmup = max(1, int(total * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@torch.inference_mode()
def _predictions(subject: Subject, model: nn.Module, images: Tensor) -> Tensor:
    with subject.autocast():
        return torch.cat([model(part).argmax(1).cpu() for part in torch.split(images, 250)])
