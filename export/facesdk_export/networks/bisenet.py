"""BiSeNet: the face parsing network whose masks MF2D trains with, under the entry names of `79999_iter.pth`.

zllrunning's face-parsing.PyTorch: the context path of BiSeNet (Yu et al. 2018) on a ResNet-18, whose map at 1/8 of
the size stands in for the spatial path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: channels of the ResNet's four stages
WIDTHS = (64, 128, 256, 512)


class BiSeNet(nn.Module):
    """Class scores (B, classes, H, W) of three heads, the first the finest, of pictures (B, 3, H, W).

    The published 19 classes are those of CelebAMask-HQ; pictures are RGB, normalised by ImageNet's statistics.
    Only the first head is used after training.
    """

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion(256, 256)
        self.conv_out = Head(256, 256, classes)
        self.conv_out16 = Head(128, 64, classes)
        self.conv_out32 = Head(128, 64, classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, context8, context16 = self.cp(image)
        size = image.shape[2:]
        return (
            self.conv_out(self.ffm(fine, context8), size),
            self.conv_out16(context8, size),
            self.conv_out32(context16, size),
        )


class ContextPath(nn.Module):
    """The ResNet's map at 1/8 of the size, and its context (128 channels) at 1/8 and 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet18()
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvBnRelu(128, 128), ConvBnRelu(128, 128)
        self.conv_avg = ConvBnRelu(512, 128, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        map8, map16, map32 = self.resnet(image)
        context32 = self.arm32(map32) + self.conv_avg(map32.mean((2, 3), keepdim=True))
        context16 = self.conv_head32(functional.interpolate(context32, map16.shape[2:]))
        context8 = functional.interpolate(self.arm16(map16) + context16, map8.shape[2:])
        return map8, self.conv_head16(context8), context16


class ResNet18(nn.Module):
    """The maps at 1/8, 1/16 and 1/32 of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
            stride = 2 if i else 1
            self.add_module(f"layer{i + 1}", nn.Sequential(Block(before, width, stride), Block(width, width)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = [self.maxpool(torch.relu(self.bn1(self.conv1(image))))]
        for i in range(len(WIDTHS)):
            maps.append(self.get_submodule(f"layer{i + 1}")(maps[-1]))
        return maps[2], maps[3], maps[4]


class Block(nn.Module):
    """Basic residual block with an activation at its end."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.downsample(x))


class ConvBnRelu(nn.Module):
    """A convolution that keeps the size, batch norm, activation."""

    def __init__(self, before: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Refinement(nn.Module):
    """Attention refinement: channels scaled by gates in (0, 1) that depend on their means."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(before, width)
        self.conv_atten, self.bn_atten = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        gates: Tensor = torch.sigmoid(self.bn_atten(self.conv_atten(features.mean((2, 3), keepdim=True))))
        return features * gates


class Fusion(nn.Module):
    """Feature fusion of two maps of one size; the gates add to the channels, and take nothing away."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.convblk = ConvBnRelu(before, width, 1)
        self.conv1 = nn.Conv2d(width, width // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(width // 4, width, 1, bias=False)

    def forward(self, fine: Tensor, context: Tensor) -> Tensor:
        x: Tensor = self.convblk(torch.cat((fine, context), 1))
        gates: Tensor = torch.sigmoid(self.conv2(torch.relu(self.conv1(x.mean((2, 3), keepdim=True)))))
        return x * gates + x


class Head(nn.Module):
    """Class scores of a map, bilinear at the picture's size, corners on corners."""

    def __init__(self, before: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(before, width)
        self.conv_out = nn.Conv2d(width, classes, 1, bias=False)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        scores = self.conv_out(self.conv(x))
        out: Tensor = functional.interpolate(scores, size, mode="bilinear", align_corners=True)
        return out
