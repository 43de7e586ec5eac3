"""What a backbone offers a block, found without storage: the source of the catalog's list of backbones."""

from __future__ import annotations

from collections import Counter
from functools import partial

from torch import nn

from harness.memory import build_on_meta
from harness.models.backbones import OWN, build
from harness.models.layers import has_own_reparameterization
from harness.models.swap import candidates
from harness.records import Json


def describe(name: str) -> dict[str, Json]:
    """Plain JSON about the backbone `name` with 1000 classes.

    `kernels`: square kernel size -> how many convolutions of it `swap` could replace, the stem not counted;
    `native`: whether timm can re-parameterize it; `params`: of the train form, a count.
    Raises UnknownName, and HarnessError for a model that cannot be run.
    """
    model = build_on_meta(partial(build, name))
    sizes = Counter(conv.kernel_size[0] for conv in candidates(model).values())
    return {
        "name": name,
        "source": "harness" if name in OWN else "timm",
        "kernels": {str(size): count for size, count in sorted(sizes.items())},
        "native": is_native(model),
        "params": sum(parameter.numel() for parameter in model.parameters()),
    }


def is_native(model: nn.Module) -> bool:
    """Whether some module of the model re-parameterizes itself; the model as a whole does not count, timm skips it."""
    return any(name and has_own_reparameterization(module) for name, module in model.named_modules())
