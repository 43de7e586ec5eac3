"""Accuracy after a short real training, of the train form and of the fused form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from harness.data import DATASETS, as_images
from harness.errors import Unsupported
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.models import fuse
from harness.quantity import Phrase, Quantity, Theme, Wording
from harness.records import Form, Json, Kind, Reading, TaskKind
from harness.training.loop import Learned, Objective, learn

BOTH: tuple[Form, ...] = ("train", "fused")
OPTIONS = {
    "epochs": {"type": "integer", "default": 2, "minimum": 1, "what": "passes over the training images"},
    "batch_size": {"type": "integer", "default": 64, "minimum": 2, "what": "images per step"},
    "image_size": {"type": "integer", "default": 32, "minimum": 8, "what": "pixels the images are resized to"},
    "train_images": {"type": "integer", "default": 4000, "minimum": 100, "what": "the first so many are trained on"},
}


@metric(
    "accuracy",
    TaskKind.TRAINING,
    Quantity(
        "accuracy",
        "fraction",
        Kind.SAMPLED,
        "higher",
        BOTH,
        "top-1 on the test images",
        theme=Theme.EXACT,
        phrases=(Phrase(Wording.POINTS, "accuracy", adjective="accurate"),),
    ),
    Quantity(
        "changed_predictions",
        "1",
        Kind.SAMPLED,
        forms=("fused",),
        what="test images folding changes",
        theme=Theme.EXACT,
    ),
    Quantity("train_loss", "1", Kind.SAMPLED, what="mean loss over the last tenth of the steps", theme=Theme.EXACT),
    Quantity(
        "diverged_at_step",
        "1",
        Kind.SAMPLED,
        "higher",
        what="where the loss was not a number, if it ever was",
        theme=Theme.EXACT,
    ),
    options=OPTIONS,
)
def accuracy(subject: Subject, epochs: int, batch_size: int, image_size: int, train_images: int) -> Iterable[Reading]:
    """Top-1 of the train form and, where there is one, of the fused form after a short training, and what it changed.

    Temperatures of dynamic convolutions fall over the same share of the training as in their papers.

    A training that diverges ends at the first loss that is not finite. The model is tested as it is then, its train
    loss has no value, and only then there is a `diverged_at_step`.
    """
    if not subject.has_classes:
        raise Unsupported(f"{subject.cell.backbone.name} has no classes", remedy="measure accuracy on a classifier")
    if subject.cell.dtype == "amp_float16":
        raise Unsupported(
            "without loss scaling gradients vanish in float16", remedy="train with amp_bfloat16 or float32"
        )
    data = DATASETS[subject.cell.dataset.name]()
    device, dtype = subject.device.torch_device, subject.dtype
    channels = subject.input_shape()[1]
    train_x = as_images(data.train.images_NCHW[:train_images], data, image_size, channels).to(device, dtype)
    test_x = as_images(data.test.images_NCHW, data, image_size, channels).to(device, dtype)
    train_y, test_y = data.train.labels_N[:train_images].to(device), data.test.labels_N
    model = subject.model("train", classes=data.classes)
    learned = trained(subject, model, train_x, train_y, epochs, batch_size)
    outputs = {"train": _outputs(subject, model.eval(), test_x)}
    if "fused" in subject.forms:
        outputs["fused"] = _outputs(subject, subject.placed(fuse(model)).eval(), test_x)
    predicted = {form: logits_NC.argmax(1) for form, logits_NC in outputs.items()}
    facts = {"epochs": epochs, "steps": len(learned.losses), "test_images": len(test_y), "seed": subject.seed}
    for form, more in zip(subject.forms, ({**learned.ending, **learned.journals}, {}), strict=False):
        right = (predicted[form] == test_y).double().mean().item()
        yield one("accuracy", form, "fraction", right, **facts, **more, **_unsound(outputs[form]))
    if "fused" in predicted:
        yield one("changed_predictions", "fused", "1", int((predicted["train"] != predicted["fused"]).sum()))
    yield from _losses(learned)


def trained(
    subject: Subject, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, epochs: int, batch_size: int
) -> Learned:
    """Train `model` in place with the cell's optimizer, loss and autocast, in the order of the subject's seed."""
    objective = Objective(subject.loss, subject.regularized, subject.autocast)
    optimizer, seed = subject.optimizer(model), subject.seed
    return learn(model, optimizer, objective, images_NCHW, labels_N, epochs=epochs, batch_size=batch_size, seed=seed)


@torch.inference_mode()
def _outputs(subject: Subject, model: nn.Module, images_NCHW: Tensor) -> Tensor:
    with subject.autocast():
        return torch.cat([model(part).cpu() for part in torch.split(images_NCHW, 250)])


def _unsound(logits_NC: Tensor) -> dict[str, Json]:
    """How many images have an output that is not a number (argmax takes it for the largest), where any has."""
    count = int((~logits_NC.isfinite()).any(1).sum())
    return {"outputs_not_finite": count} if count else {}


def _losses(learned: Learned) -> Iterator[Reading]:
    """The train loss, without a value where there is none: what is not a number is no measurement, and not in JSON."""
    losses = learned.losses
    first: dict[str, Json] = {"first_loss": losses[0]} if losses else {}
    if learned.diverged_at is not None:
        yield one("train_loss", "train", "1", (), **first, **learned.ending)
        yield one("diverged_at_step", "train", "1", learned.diverged_at, loss=str(learned.end))
        return
    tail = losses[-max(1, len(losses) // 10) :]
    yield one("train_loss", "train", "1", sum(tail) / len(tail), **first)
