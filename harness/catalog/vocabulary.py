"""The words a suite may use that no registry holds, and the sizes of batches and images when it says none."""

from __future__ import annotations

from harness import catalog
from harness.records import Json

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


def default_batch_size(backbone: str, device: str) -> int:
    """A single layer's own (8); else the device's: 8 on the CPU, 64 on an accelerator."""
    size: int = _sizes(backbone, device)["batch_size"]
    return size


def default_image_size(backbone: str, device: str) -> int:
    """Pixels: of a single layer's map (56); else the device's: 96 on the CPU, 224 on an accelerator."""
    size: int = _sizes(backbone, device)["image_size"]
    return size


def _sizes(backbone: str, device: str) -> Json:
    layers = catalog.layers()
    return layers[backbone] if backbone in layers else catalog.device(device)
