"""layer: a single convolution with its batch norm; no network, so a block takes its place as a whole."""

from __future__ import annotations

from torch import Tensor, nn

from harness.models.nets.base import BACKBONES, MAP, Backbone, SingleLayer
from harness.records import Json


class Layer(nn.Module):
    """A single convolution slot, for studies of kernels.

    Shapes: (N, c_in, H, W) -> (N, c_out, ceil(H / stride), ceil(W / stride)) with the default "same" padding; no
    classifier.
    """

    stem_names: tuple[str, ...] = ()  # its one convolution is what is studied
    input_side = MAP

    def __init__(
        self,
        c_in: int = 64,
        c_out: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2) if padding is None else padding
        self.in_chans = c_in
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.norm(self.conv(x_NCHW))
        return y_NCHW


def _whole(least: int, default: int | None) -> Json:
    return {"type": "integer", "minimum": least, "default": default}


SINGLE = SingleLayer(
    options={
        "c_in": _whole(1, 64),
        "c_out": _whole(1, 64),
        "stride": _whole(1, 1),
        "groups": _whole(1, 1),
        "dilation": _whole(1, 1),
        "padding": _whole(0, None),
    },
    batch_size=8,
    image_size=MAP,
    kernel_size=3,
)
"""The kernel's size is an axis of a suite and no option; padding None is "same"."""

BACKBONES.register("layer")(Backbone(Layer, has_classes=False, single=SINGLE))
