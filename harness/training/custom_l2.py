"""RepVGG's custom L2: weight decay of the kernels that training makes, in place of the branches' own.

    loss + decay / 2 * sum over blocks of block.custom_l2()

and no ordinary decay of the two convolutions that it looks at; all other parameters decay as ever. A block takes
part that has `custom_l2()`, a differentiable scalar, and `custom_l2_weights()`, the parameters that it stands for.
Source: the authors' training code for Ding et al., RepVGG, CVPR 2021, arXiv:2101.03697; optional there, and judged
to matter little since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from harness.errors import Unsupported


class HasCustomL2(Protocol):
    """A block that takes part."""

    def custom_l2(self) -> Tensor:
        """Differentiable, a scalar."""
        ...

    def custom_l2_weights(self) -> Sequence[Tensor]:
        """The parameters that it stands for."""
        ...


def penalty(model: nn.Module, weight_decay: float) -> Tensor:
    """What is added to the loss, a scalar. After the forward: it reads the running variances of that step."""
    return weight_decay / 2 * torch.stack([block.custom_l2() for block in _blocks(model)]).sum()


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """For an optimizer: all parameters that decay, and those that do not because `penalty` looks after them.

    Raises Unsupported for a model without a block that has a custom L2.
    """
    blocks = _blocks(model)
    if not blocks:
        raise Unsupported(
            "custom_l2 is weight decay for RepVGG blocks, and this model has none",
            remedy="use block repvgg, or leave custom_l2 out",
        )
    without = {weight for block in blocks for weight in block.custom_l2_weights()}
    parts = ([p for p in model.parameters() if (p in without) is chosen] for chosen in (False, True))
    decayed, undecayed = parts
    return [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]


def _blocks(model: nn.Module) -> list[HasCustomL2]:
    # isinstance of a protocol is slow, and this is a part of every step
    return [cast(HasCustomL2, module) for module in model.modules() if hasattr(module, "custom_l2")]
