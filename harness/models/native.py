"""Block `native`: the re-parameterizable layers that a network of timm has by itself, as timm builds and fuses them."""

from __future__ import annotations

from copy import deepcopy

from torch import nn

from harness.errors import Unsupported
from harness.models.layers import LayerChange, has_own_reparameterization, label
from harness.records import Json

NAME = "native"

DECLARATION: Json = {
    "family": "native",
    "paper": "timm's own re-parameterizable networks (RepVGG, MobileOne, FastViT, RepViT, GhostNetV3, RepGhostNet)",
    "fusable": True,
    "evaluations": ["offline"],
    "options": {},
    "limits": {"kernel_size": []},
    "sister": None,
    "no_sister": "its branches are timm's",
    "network": {"own_layers": True, "keeps_kernel_sizes": True, "shared_state": None, "linear_form": False},
}
"""As `harness.blocks.declaration` has it: not a block that is put in, but the backbone's own."""


def with_own_layers(model: nn.Module, kernel_size: int | None, options: dict[str, Json]) -> nn.Module:
    """A copy, with the layers that re-parameterize themselves as its `swap_report`. Raises Unsupported without any."""
    if kernel_size is not None or options:
        raise Unsupported("block native has neither kernel sizes nor options", remedy="leave them out")
    new = deepcopy(model)
    own = [(name, module) for name, module in new.named_modules() if name and has_own_reparameterization(module)]
    if not own:
        raise Unsupported(
            f"{type(new).__name__} has no modules that re-parameterize themselves",
            remedy="use block native with repvgg_a0, mobileone_s0, fastvit_t8, ..., or another block here",
        )
    new.swap_report = tuple(  # type: ignore[assignment]
        LayerChange(name, label(module), label(module), "re-parameterizes itself") for name, module in own
    )
    return new
