"""Deep3DFaceRecon's coefficient network: a ResNet v1.5 with seven linear heads, as named in `net_recon`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

#: sizes of the heads, in the order of the 257 coefficients: identity, expression, texture, rotation angles
#: (x, y, z, radians), spherical-harmonics lighting (3 x 9), translation x and y, translation z
HEADS = (80, 64, 80, 3, 27, 2, 1)
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


class Deep3DRecon(nn.Module):
    """(B, 257) coefficients of the 3D face model, the heads side by side, of RGB faces (B, 3, H, W) in [0, 1].

    No mean or deviation is subtracted.  Trained at 224 x 224; HifiFace feeds its 256 x 256 crop as it is.
    Source: sicxu/Deep3DFaceRecon_pytorch `networks.py`.
    """

    def __init__(self, backbone: Backbone = "resnet50", heads: Sequence[int] = HEADS) -> None:
        super().__init__()
        block, layers = _BACKBONES[backbone]
        self.backbone = ResNet(block, layers)
        features = 512 * block.expansion
        self.final_layers = nn.ModuleList(nn.Conv2d(features, size, 1) for size in heads)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        return torch.cat([head(features) for head in self.final_layers], 1).flatten(1)


class ResNet(nn.Module):
    """(B, 512 * expansion, 1, 1) pooled features of (B, 3, H, W); names as in torchvision, without the classifier."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], layers: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for i, count in enumerate(layers):
            width, blocks = 64 * 2**i, []
            for k in range(count):
                blocks.append(block(before, width, 2 if i and not k else 1))
                before = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.stages = len(layers)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x.mean((2, 3), keepdim=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: the block of ResNet-18 and -34."""

    expansion: ClassVar[int] = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a shortcut; "v1.5": the stride is in the 3x3."""

    expansion: ClassVar[int] = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = width * self.expansion
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = _downsample(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.relu(self.bn1(self.conv1(x)))
        branch = torch.relu(self.bn2(self.conv2(branch)))
        return torch.relu(self.bn3(self.conv3(branch)) + self.downsample(x))


def _downsample(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


_BACKBONES: dict[Backbone, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}
