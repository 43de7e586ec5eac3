"""What a backbone offers a block, found without storage: the source of the catalog's list of backbones."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import nn

from harness.memory import build_on_meta
from harness.models.candidates import candidates
from harness.models.layers import has_own_reparameterization
from harness.models.nets.backbones import build, input_shape, source
from harness.records import Json

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Pixels. Networks that pool, merge or shift windows want the side of an image to be a multiple of one of these."""


FAR = 64
"""Pixels beyond a network's own size, a multiple of every step: only one that takes any size takes this too."""


def describe(name: str) -> dict[str, Json]:
    """Plain JSON about the backbone `name` with 1000 classes.

    `kernels`: square kernel size -> how many convolutions of it `swap` could replace, the stem not counted;
    `native`: whether timm can re-parameterize it; `params`: of the train form, a count; `images`: see `images`.
    Raises UnknownName, and HarnessError for a model that cannot be run.
    """
    model = build_on_meta(partial(build, name))
    sizes = Counter(conv.kernel_size[0] for conv in candidates(model).values())
    return {
        "name": name,
        "source": source(name),
        "kernels": {str(size): count for size, count in sorted(sizes.items())},
        "native": is_native(model),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "images": images(model),
    }


def is_native(model: nn.Module) -> bool:
    """Whether some module of the model re-parameterizes itself; the model as a whole does not count, timm skips it."""
    return any(name and has_own_reparameterization(module) for name, module in model.named_modules())


def images(model: nn.Module) -> dict[str, int]:
    """Which square images a model on meta trains on, in pixels.

    `{"step": s, "smallest": n}`: n, n + s, ... up to its own size and beyond; `{"only": n}`: its own size alone.
    Tried with two images, since batch norm refuses to train on a single value per channel.
    """
    own = input_shape(model)[-1]
    for step in STEPS:
        # sizes may work by chance, where a stride rounds them to the right map: five of them do not
        if own % step == 0 and all(_runs(model, own + more) for more in (0, -step, step, 3 * step, FAR)):
            return {"step": step, "smallest": _smallest(model, own, step)}
    return {"only": own}


def _smallest(model: nn.Module, own: int, step: int) -> int:
    """By halving: a network that runs on an image runs on larger ones of the same kind."""
    low, high = 0, own // step
    while high - low > 1:
        middle = (low + high) // 2
        if _runs(model, middle * step):
            high = middle
        else:
            low = middle
    return high * step


def _runs(model: nn.Module, side: int) -> bool:
    try:
        with torch.no_grad():
            model.train()(torch.empty(input_shape(model, 2, side), device="meta"))
    except Exception:  # whatever a network says to an image that it cannot take
        return False
    return True
