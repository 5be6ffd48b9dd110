"""The discriminator that Vec2Face is trained with, under its published entry names.

HaiyuWu/Vec2Face, after lucidrains' ViT-VQGAN (parti-pytorch).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Patch scores (n, 1, h', w') of pictures (n, 3, h, w) in [-1, 1]; 11 x 11 of 112 x 112."""

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        *,
        channels: int = 3,
        first_kernels: Sequence[int] = (3, 7, 15),
        groups: int = 8,
        slope: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        last = dims[-1]
        first = nn.Sequential(ParallelConvolutions(channels, dims[0], first_kernels), nn.LeakyReLU(slope))
        self.layers = nn.ModuleList([first])
        for before, width in itertools.pairwise(dims):
            self.layers.append(nn.Sequential(
                nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(slope),
                nn.GroupNorm(groups, width, eps), Residual(width, groups, slope, eps),
            ))  # fmt: skip
        self.to_logits = nn.Sequential(nn.Conv2d(last, last, 1), nn.LeakyReLU(slope), nn.Conv2d(last, 1, 4))

    def forward(self, picture: Tensor) -> Tensor:
        x = picture
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.to_logits(x)
        return scores


class ParallelConvolutions(nn.Module):
    """One map of `width` channels from kernels of several sizes: a half, a quarter, ... of it, the rest to the last."""

    def __init__(self, channels: int, width: int, kernels: Sequence[int]) -> None:
        super().__init__()
        kernels = sorted(kernels)
        shares = [width // 2**i for i in range(1, len(kernels))]
        shares.append(width - sum(shares))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, share, kernel, padding=(kernel - 1) // 2)
            for share, kernel in zip(shares, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


class Residual(nn.Module):
    """x plus a normalised, activated and convolved x."""

    def __init__(self, width: int, groups: int, slope: float, eps: float) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module("groupnorm", nn.GroupNorm(groups, width, eps))
        self.block.add_module("activation", nn.LeakyReLU(slope))
        self.block.add_module("project", nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out
