"""timm's models, under the names that they have there. Weights are never downloaded."""

from __future__ import annotations

import contextlib
import inspect
from functools import partial

import timm
from torch import nn

from harness.memory import build_on_meta
from harness.models.nets.base import LIBRARIES, Library
from harness.records import Json


class Timm(Library):
    """Every model that timm can create without a place to download from; a tag behind the name is timm's affair."""

    source = "timm"

    def names(self) -> list[str]:
        return list(timm.list_models())

    def knows(self, name: str) -> bool:
        # a colon or a slash is a place to download from (hf-hub:..., local-dir:...)
        return ":" not in name and "/" not in name and bool(timm.is_model(name))

    def create(self, name: str, num_classes: int, **options: Json) -> nn.Module:
        """timm starts the last batch norm of a residual branch at zero in some families. Here they start at one
        (zero_init_last=False): a block brings its own norm at one, so all variants start alike, and no branch is dead
        in the first step.
        """
        create = partial(timm.create_model, name, pretrained=False, num_classes=num_classes, **options)
        sketch = build_on_meta(create)
        model: nn.Module
        if "zero_init_last" in inspect.signature(type(sketch).__init__).parameters:
            with contextlib.suppress(TypeError):  # a few families say it themselves, and not twice
                model = create(**{"zero_init_last": False, **options})
                return model
        model = create()
        return model


LIBRARIES.register("timm")(Timm())
