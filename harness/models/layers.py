"""What swap and fuse share: the report of a layer, putting modules into place, what a batch norm leaves behind."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer and why. `after` equals `before` where it was left as it is."""

    name: str
    before: str
    after: str
    reason: str

    @property
    def changed(self) -> bool:
        return self.before != self.after


def label(module: nn.Module) -> str:
    """A module in a few words: ``Conv2d(64, 128, 3x3, stride 2)``, for others the class."""
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d):
        return kind
    parts = [str(module.in_channels), str(module.out_channels), "x".join(map(str, module.kernel_size))]
    if module.stride != (1, 1):
        parts.append(f"stride {module.stride[0]}")
    if module.dilation != (1, 1):
        parts.append(f"dilation {module.dilation[0]}")
    if module.groups != 1:
        parts.append("depthwise" if is_depthwise(module) else f"groups {module.groups}")
    return f"{kind}({', '.join(parts)})"


def is_depthwise(conv: nn.Conv2d) -> bool:
    """One filter or several per input channel, and more than one channel."""
    return 1 < conv.groups == conv.in_channels


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """`model` with `new` in the place called `name`; `new` itself where that is the whole model."""
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = new
    return model


def without_norm(norm: nn.Module) -> nn.Module:
    """What remains of a batch norm once its arithmetic is elsewhere: timm's carry a dropout and an activation."""
    kept = OrderedDict((name, child) for name, child in norm.named_children() if not isinstance(child, nn.Identity))
    remains = nn.Sequential(kept) if kept else nn.Identity()
    remains.training = norm.training  # not train(): the children keep their own modes
    return remains


def has_own_reparameterization(module: nn.Module) -> bool:
    """Whether `timm.utils.reparameterize_model` would convert this module (its rule: one of these methods)."""
    return any(hasattr(module, method) for method in ("fuse", "reparameterize", "switch_to_deploy"))


def padding_of(conv: nn.Conv2d) -> int | None:
    """Zeros on each side; None where sides differ."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    if isinstance(conv.padding, str):
        if conv.padding == "same" and reach % 2:
            return None
        return 0 if conv.padding == "valid" else reach // 2
    rows, columns = conv.padding
    return rows if rows == columns else None


def within(name: str, ancestor: str) -> bool:
    """Whether the module called `name` is the one called `ancestor`, or part of it."""
    return name == ancestor or not ancestor or name.startswith(f"{ancestor}.")


def configured(model: nn.Module, key: str) -> frozenset[str]:
    """Layer names in timm's configuration of the model."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get(key) or ()
    return frozenset([names] if isinstance(names, str) else names)
