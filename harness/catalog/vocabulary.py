"""The words a suite may use that no registry holds, and the sizes of batches and images when it says none."""

from __future__ import annotations

DTYPES = {
    "float64": "double precision",
    "float32": "single precision",
    "tf32": "float32 storage, TensorFloat-32 products (NVIDIA Ampere and later)",
    "float16": "half precision",
    "bfloat16": "brain floating point",
    "amp_float16": "float32 weights, operators in float16 where autocast wants it; the loss is not scaled",
    "amp_bfloat16": "float32 weights, operators in bfloat16 where autocast wants it",
}

MEMORY_FORMATS = {"contiguous": "NCHW", "channels_last": "NHWC"}

DEVICE_KINDS = {
    "cpu": "this machine's processor",
    "cuda": "NVIDIA (or ROCm) GPU; cuda:1 names the second",
    "xpu": "Intel GPU",
    "mps": "Apple GPU",
}

DEVICE_OPTIONS = {
    "cudnn_benchmark": {"choices": [True, False], "what": "let cuDNN time its algorithms first (cuda only)"},
}

IMPLEMENTATIONS = ["single", "foreach", "fused"]

OPTIMIZERS = {
    "sgd": {
        "lr": {"type": "number", "default": 0.1},
        "momentum": {"type": "number", "default": 0.9},
        "nesterov": {"type": "boolean", "default": False},
        "weight_decay": {"type": "number", "default": 0.0},
        "custom_l2": {"type": "boolean", "default": False},
        "implementation": {"choices": IMPLEMENTATIONS, "default": None},
    },
    "adamw": {
        "lr": {"type": "number", "default": 1e-3},
        "weight_decay": {"type": "number", "default": 0.01},
        "implementation": {"choices": IMPLEMENTATIONS, "default": None},
    },
    "repopt": {
        "base": {"choices": ["sgd", "adamw"], "default": "sgd"},
        "lr": {"type": "number", "default": None},
        "momentum": {"type": "number", "default": 0.9},
        "nesterov": {"type": "boolean", "default": False},
        "weight_decay": {"type": "number", "default": None},
        "implementation": {"choices": IMPLEMENTATIONS, "default": None},
    },
}
"""Options that are None here follow from others: the implementation from the device, lr and decay from the base."""

LAYER_OPTIONS = {"c_in": 1, "c_out": 1, "stride": 1, "groups": 1, "dilation": 1, "padding": 0}
"""Options of the backbone `layer`, a single convolution, and the least of each: whole numbers."""


def default_batch_size(backbone: str, device: str) -> int:
    """8 on the CPU and for a single layer, 64 on an accelerator."""
    return 8 if backbone == "layer" or device == "cpu" else 64


def default_image_size(backbone: str, device: str) -> int:
    """Pixels: 96 on the CPU, 224 on an accelerator; a single layer sees a map of 56."""
    if backbone == "layer":
        return 56
    return 96 if device == "cpu" else 224
