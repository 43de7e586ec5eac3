"""ResNet-18 made wider: every width, the stem's included, times one factor.

OREPA's supplement (table 2) trains WideResNet-18 (1.5x) and (2x). Their exact list of layers was not retrieved: that
the stem is widened too is this harness's reading.
Papers: He et al., CVPR 2016, arXiv:1512.03385; Hu et al., OREPA, CVPR 2022, arXiv:2204.00826.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from harness.models.nets.own import OwnNet, register

FACTORS = {"x1_5": 1.5, "x2": 2.0}


class WideResNet18(OwnNet):
    """torchvision's ResNet-18, its modules under the same names, `factor` times as wide.

    Shapes: (N, 3, H, W) -> (N, num_classes), the last maps H / 32.
    """

    stem_names = ("conv1",)

    def __init__(self, factor: float, num_classes: int = 1000) -> None:
        super().__init__()
        first = int(64 * factor)
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(first, first, stride=1)
        self.layer2 = _stage(first, 2 * first, stride=2)
        self.layer3 = _stage(2 * first, 4 * first, stride=2)
        self.layer4 = _stage(4 * first, 8 * first, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * first, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(x_NCHW))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = self.through(stage, features)
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    shortcut = None
    if c_in != c_out:
        shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    return nn.Sequential(BasicBlock(c_in, c_out, stride, shortcut), BasicBlock(c_out, c_out))


for _name, _factor in FACTORS.items():
    register(f"wide_resnet18_{_name}", WideResNet18, _factor)
