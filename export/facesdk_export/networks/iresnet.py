"""IResNet: the recognition network of insightface's `arcface_torch`, under the entry names of its checkpoints.

The same layout serves ArcFace (identity) and MagFace (quality: the norm of the vector).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

#: depth -> blocks per stage, as in arcface_torch.  Vec2Face's own "200" has the blocks of 100: build it as 100.
LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)


class IResNet(nn.Module):
    """(B, embedding) vector, not normalised, of aligned RGB faces (B, 3, input_size, input_size) in [-1, 1].

    layers              blocks per stage, see LAYERS.
    identity_attention  the squeeze-and-excitation of the HSFace files, see Block.
    Source: insightface arcface_torch `iresnet.py`; every batch norm has eps 1e-5.
    """

    def __init__(
        self,
        layers: Sequence[int] = LAYERS[100],
        widths: Sequence[int] = WIDTHS,
        *,
        embedding: int = 512,
        input_size: int = 112,
        identity_attention: bool = False,
        reduction: int = 16,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps)
        self.prelu = nn.PReLU(widths[0])
        for i, (before, width, count) in enumerate(zip((widths[0], *widths), widths, layers, strict=False)):
            first = Block(before, width, 2, eps, reduction if identity_attention else 0)
            stage = nn.Sequential(first, *(Block(width, width, 1, eps) for _ in range(count - 1)))
            self.add_module(f"layer{i + 1}", stage)
        self.stages = len(layers)
        self.bn2 = nn.BatchNorm2d(widths[-1], eps)
        side = -(-input_size // 2**self.stages)
        self.fc = nn.Linear(widths[-1] * side * side, embedding)
        self.features = nn.BatchNorm1d(embedding, eps)

    def forward(self, image: Tensor) -> Tensor:
        vector: Tensor = self.features(self.fc(self.bn2(self.stage_maps(image)[-1]).flatten(1)))
        return vector

    def stage_maps(self, image: Tensor) -> list[Tensor]:
        """The feature map after each stage; every stage halves the side."""
        maps = [self.prelu(self.bn1(self.conv1(image)))]
        for i in range(self.stages):
            maps.append(self.get_submodule(f"layer{i + 1}")(maps[-1]))
        return maps[1:]


class Block(nn.Module):
    """Pre-norm residual block; (B, before, H, W) -> (B, width, H / stride, W / stride).

    reduction > 0: squeeze-and-excitation that rescales the *identity*, after its downsampling, and not the
    branch.  The HSFace networks were trained so, and in the first block of every stage only.
    """

    def __init__(self, before: int, width: int, stride: int, eps: float, reduction: int = 0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, eps)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width, eps))
        self.attn: nn.Module = SqueezeExcitation(width, reduction) if reduction else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        branch = self.bn3(self.conv2(branch))
        total: Tensor = branch + self.attn(self.downsample(x))
        return total


class SqueezeExcitation(nn.Module):
    """x, each channel scaled by a gate in (0, 1) that depends on the spatial means of all channels."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        gates: Tensor = torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))
        return x * gates


def iresnet_of(entries: Iterable[str]) -> IResNet:
    """The network of a checkpoint's entry names (without prefix): stages, blocks and attention are read off them.

    HSFace files were published with attention; files of the plain layout are built plain.
    """
    names = list(entries)
    blocks = {found[0] for name in names if (found := re.match(r"layer\d+\.\d+\.", name))}
    layers = [sum(block.startswith(f"layer{i + 1}.") for block in blocks) for i in range(len(WIDTHS))]
    return IResNet(layers, identity_attention=any(".attn." in name for name in names))
