"""ODConv, omni-dimensional dynamic convolution: an attention along each of the four axes of n kernels.

    y = bn(f . ((sum_n w_n s . W_n) * (c . x)))
    h = relu(norm(U mean(x)));   c, f, s = sigmoid((V_. h + v_.) / T);   w = softmax((V_w h + v_w) / T)

Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)), kernels W_n (c_out, c_in / groups, k, k);
for each sample the input channels c (c_in), the filters f (c_out), the taps s (k, k) and the kernels w (n); h has
max(c_in // 16, 16) entries. Attentions that would do nothing are left out: f of a depthwise convolution (c is there
already), s of a 1x1, w of a single kernel. With neither s nor w the kernel is the same for all samples, and that is one
ordinary convolution. The others commute with the sum over n, which is taken first: n times fewer products than as
written. f goes with s, one product of the kernels for both; where there is no s it scales the map, as written.

T falls from 30 to 1 over the first 10 of 100 epochs, batch by batch, in all four attentions. At the start sigmoids are
near 0.5, and so the output without its norm is near a quarter (k > 1: an eighth) of the convolution's.

`kernels` = 1 and 4 are the ODConv (1x) and (4x) of the tables, 2 of ResNet101. `attention_norm` is ours: layer or none
for training with a batch of 1, which the paper's batch norm cannot do. Neither adds a bias.
Initialisation: kernels kaiming normal, each by its fan-out c_out k k; U, V kaiming normal by their fan-out, v zero.
Paper: Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022, arXiv:2209.07947, section 3; OSVAI/ODConv.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.experts import ExpertBlock, fan_out_linear
from harness.blocks.parts.per_sample import KernelWork, Norm, Schedule, Tempered, convolve_each, pooled, vector_norm


@BLOCKS.register("odconv")
class ODConv(ExpertBlock):
    paper = "Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, ICLR 2022, arXiv:2209.07947, section 3"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        kernels: Annotated[Literal[1, 2, 4, 8], "kernels to average; 1 leaves the attentions within one kernel"] = 1,
        attention_norm: Annotated[Norm, "norm of the attention's squeezed vector; batch needs more than one sample"] = (
            "batch"
        ),
    ) -> None:
        initialise = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
        super().__init__(spec, kernels, initialise, kernels=kernels, attention_norm=attention_norm)
        self.attention = OmniAttention(spec, kernels, attention_norm)
        self.scale_kernels = ScaleKernels(self.kernel_shape)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        attention = self.attention(pooled(x_NCHW))
        x_NCHW = scaled(x_NCHW, attention["channel"])
        if "kernel" in attention or "spatial" in attention:
            y_NCHW = convolve_each(x_NCHW, self._kernels(attention), self.spec)
        else:
            s, weight_OIHW = self.spec, self.experts.view(self.kernel_shape)
            y_NCHW = F.conv2d(x_NCHW, weight_OIHW, None, s.stride, s.padding, s.dilation, s.groups)
        if "filter" in attention and "spatial" not in attention:
            y_NCHW = scaled(y_NCHW, attention["filter"])
        return y_NCHW

    def _kernels(self, attention: dict[str, Tensor]) -> Tensor:
        """(N, c_out, c_in / groups, k, k), mixed and scaled along taps and filters."""
        kernels = self.mix(attention["kernel"], self.experts) if "kernel" in attention else self.experts
        if "spatial" in attention:
            kernels = self.scale_kernels(kernels, attention["spatial"], attention.get("filter"))
        return kernels.reshape(-1, *self.kernel_shape)


class OmniAttention(Tempered):
    """x (N, c_in) -> channel (N, c_in), filter (N, c_out), spatial (N, k * k), kernel (N, n); not the idle ones."""

    def __init__(self, spec: ConvSpec, kernels: int, norm: Norm) -> None:
        super().__init__(Schedule(30, 1, epochs=10, of=100))
        hidden = max(spec.c_in // 16, 16)
        self.squeeze = nn.Sequential(
            fan_out_linear(spec.c_in, hidden, bias=False), vector_norm(norm, hidden), nn.ReLU()
        )
        widths = {"channel": spec.c_in}
        if not spec.depthwise:
            widths["filter"] = spec.c_out
        if spec.kernel_size > 1:
            widths["spatial"] = spec.kernel_size**2
        if kernels > 1:
            widths["kernel"] = kernels
        self.heads = nn.ModuleDict({name: fan_out_linear(hidden, width) for name, width in widths.items()})

    def forward(self, x_NC: Tensor) -> dict[str, Tensor]:
        squeezed = self.squeeze(x_NC)
        logits = {name: head(squeezed) / self.temperature for name, head in self.heads.items()}
        return {name: z.softmax(1) if name == "kernel" else z.sigmoid() for name, z in logits.items()}


class ScaleKernels(KernelWork):
    """Flat kernels (N or 1, elements) times taps (N, k * k) and filters (N, c_out): (N, c_out, c_in / groups, k, k)."""

    def __init__(self, kernel_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.kernel_shape = kernel_shape

    def forward(self, kernels: Tensor, taps_NT: Tensor, filters_NO: Tensor | None) -> Tensor:
        factor = taps_NT.reshape(-1, 1, 1, *self.kernel_shape[2:])
        if filters_NO is not None:
            factor = factor * filters_NO[:, :, None, None, None]
        return kernels.reshape(-1, *self.kernel_shape) * factor


def scaled(map_NCHW: Tensor, factor_NC: Tensor) -> Tensor:
    """Each channel of each sample times its factor."""
    return map_NCHW * factor_NC[:, :, None, None]
