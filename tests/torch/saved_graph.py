"""Bytes that a forward pass keeps, found by walking the graph."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def saved_bytes(block: nn.Module, x: Tensor) -> int:
    """Each storage that a node of the output's graph holds, once, the block's own tensors left out.

    The metric asks the saved-tensor hooks; this walks the graph that the forward has left behind.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), *block.buffers())}
    todo, seen, kept = [block(x).grad_fn], set(), dict[int, int]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        held = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in tree_leaves([held, getattr(node, "saved_tensors", ())]):
            if isinstance(tensor, Tensor) and tensor.ndim:  # a Python number stands there as a tensor too
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(size for address, size in kept.items() if address not in own)
