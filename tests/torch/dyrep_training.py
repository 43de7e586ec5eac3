"""Small nets, data and epochs that tests of DyRep train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from harness.blocks.reparam.dyrep import DyRepConv


def relative(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def net(bias=False):
    """Three convolutions that can be expanded, a 1x1 and one of another kind that cannot."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=bias),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, 1, 1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def data(count=3, size=4, side=10, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(size, 3, side, side, generator=generator).to(dtype) for _ in range(count)]
    return images, [torch.randint(4, (size,), generator=generator) for _ in range(count)]


def epoch_of(dyrep, optimizer, epoch, images, labels, scheduler=None):
    """One epoch and what DyRep does after it; the losses."""
    losses = []
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(dyrep.model(x), y)
        loss.backward()
        dyrep.record()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    dyrep.after_epoch(epoch, images)
    return losses


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


@torch.no_grad()
def evaluated(model, x):
    modes = {module: module.training for module in model.modules()}
    y = model.eval()(x)
    for module, mode in modes.items():
        module.training = mode
    return y


def uneven(model):
    """Every branch of every grown layer at 0.02 or 0.5: half of them are weak."""
    for block in model.modules():
        if isinstance(block, DyRepConv):
            for i, branch in enumerate(block.branches.values()):
                norms = [module for module in branch.modules() if isinstance(module, nn.BatchNorm2d)]
                nn.init.constant_(norms[-1].weight, 0.5 if i % 2 else 0.02)
