"""What tests of structural blocks count and compare."""

from __future__ import annotations

from torch import Tensor, nn


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
