"""What a training is made of: optimizers, the loop, temperatures that fall, blocks that grow."""

from harness.training import growth  # noqa: F401, registers its rule
from harness.training.annealing import Annealing

__all__ = ["Annealing"]
