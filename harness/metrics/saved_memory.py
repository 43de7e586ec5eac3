"""Saved memory: bytes that a forward pass keeps for its backward pass, and which branch keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

from harness.blocks import Block
from harness.errors import Unsupported
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.memory import Saved, saved_storages
from harness.quantity import Parts, Phrase, Quantity, Wording
from harness.records import Kind, Reading, TaskKind

SEVERAL, WHOLE, OUTSIDE = "several branches", "the block itself", "outside of blocks"
"""What more than one branch keeps (their input), a block without branches, and the network around the blocks."""


@metric(
    "saved_memory",
    TaskKind.CELL,
    Quantity(
        "saved_memory",
        "B",
        Kind.COUNT,
        what="bytes one forward pass keeps for backward",
        rank=50,
        phrases=(
            Phrase(Wording.BYTES, "what is kept for backward", unless=("train_memory", "predicted_train_memory")),
        ),
        parts=(Parts("branches", "Kept for backward, by branch"),),
    ),
)
def saved_memory(subject: Subject) -> Iterable[Reading]:
    """Bytes that one training forward keeps for backward, by branch.

    Every tensor handed to the saved-tensor hooks, once per storage, without parameters and buffers, the input
    included where it is kept.
    """
    if subject.cell.checkpointing:
        raise Unsupported(
            "what a checkpoint keeps does not pass through the saved-tensor hooks",
            remedy="see the activations in train_memory or predicted_train_memory",
        )
    x, model = subject.input(), subject.model("train")
    with subject.autocast():
        saved = saved_storages(model, x)
    total = sum(each.size for each in saved)
    inputs = total / (x.numel() * x.element_size())
    yield one("saved_memory", "train", "B", total, inputs=inputs, branches=by_branch(model, saved))


def by_branch(model: nn.Module, saved: Iterable[Saved]) -> dict[str, int]:
    """Bytes by branch, all blocks of the model together, the largest first; they add up to all that is saved.

    A storage belongs to a branch when nothing but that branch keeps it: without the branch it would not be there.
    """
    labels = {name: _label(model, name) for name, _ in model.named_modules()}
    total: Counter[str] = Counter()
    for each in saved:
        of = {labels[owner] for owner in each.owners}
        label = OUTSIDE if OUTSIDE in of else SEVERAL if len(of) > 1 else of.pop()
        total[label] += each.size
    return dict(total.most_common())


def _label(model: nn.Module, name: str) -> str:
    """The branch that a module is part of; a block's own operations are its name."""
    path = name.split(".") if name else []
    chain = [model, *(model.get_submodule(".".join(path[: i + 1])) for i in range(len(path)))]
    block = next((i for i, module in enumerate(chain) if isinstance(module, Block)), None)
    if block is None:
        return OUTSIDE
    branches = (getattr(module, "branch_name", None) for module in chain[block + 1 :])
    return next((branch for branch in branches if branch), WHOLE)
