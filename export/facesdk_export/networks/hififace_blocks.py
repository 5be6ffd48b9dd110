"""Blocks that both HifiFace generators are made of, under their published parameter names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Resample = Literal["none", "down", "up"]
Resize = Literal["bilinear", "bicubic"]

#: negative slope of every LeakyReLU (maum-ai/hififace and xuehy/HiFiFace-pytorch)
SLOPE = 0.2


def resampling(resample: Resample) -> list[nn.Module]:
    """No layer, a 2x2 mean, or bilinear doubling with half-pixel centres."""
    if resample == "down":
        return [nn.AvgPool2d(2)]
    if resample == "up":
        return [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)]
    return []


def lerp(rate: float | Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`first` where the rate is 1, `second` where it is 0; other rates, as of a tanh mask below 0, extrapolate."""
    return rate * first + (1 - rate) * second


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def resized(picture: Tensor, size: int, mode: Resize = "bilinear") -> Tensor:
    """(n, c, size, size) without antialiasing, half-pixel centres: how every network here was trained."""
    return functional.interpolate(picture, (size, size), mode=mode, align_corners=False)


def nearest_quarter(picture: Tensor) -> Tensor:
    """Every fourth pixel of every fourth row, from the first."""
    return picture[..., ::4, ::4]


def convolutions(*paths: nn.Sequential) -> list[nn.Conv2d]:
    """The convolutions of the paths, in order."""
    return [module for path in paths for module in path if isinstance(module, nn.Conv2d)]


class ResBlock(nn.Module):
    """Pre-activated residual block: two 3x3 convolutions, resampled after the first; 1x1 convolution beside them."""

    def __init__(self, in_channels: int, out_channels: int, resample: Resample = "none") -> None:
        super().__init__()
        self.resample = resample
        self.main_path = nn.Sequential(
            nn.InstanceNorm2d(in_channels), nn.LeakyReLU(SLOPE), conv3(in_channels, out_channels),
            *resampling(resample),
            nn.InstanceNorm2d(out_channels), nn.LeakyReLU(SLOPE), conv3(out_channels, out_channels),
        )  # fmt: skip
        self.side_path = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), *resampling(resample))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main_path(x) + self.side_path(x)
        return out


class AdaIn(nn.Module):
    """Adaptive instance normalisation: std * norm(x) + mean, both linear in the vector (and not 1 + std)."""

    def __init__(self, channels: int, vector_size: int = 769) -> None:
        super().__init__()
        self.std_style_fc = nn.Linear(vector_size, channels)
        self.mean_style_fc = nn.Linear(vector_size, channels)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(n, c, h, w) and (n, vector_size) -> (n, c, h, w)."""
        std, mean = (layer(vector)[..., None, None] for layer in (self.std_style_fc, self.mean_style_fc))
        return torch.addcmul(mean, std, functional.instance_norm(x))


class AdaInResBlock(nn.Module):
    """Residual block whose two normalisations follow the identity vector."""

    def __init__(
        self, in_channels: int, out_channels: int, resample: Resample = "none", vector_size: int = 769
    ) -> None:
        super().__init__()
        self.resample = resample
        self.adain1 = AdaIn(in_channels, vector_size)
        self.adain2 = AdaIn(out_channels, vector_size)
        self.main_path1 = nn.Sequential(nn.LeakyReLU(SLOPE), conv3(in_channels, out_channels), *resampling(resample))
        self.main_path2 = nn.Sequential(nn.LeakyReLU(SLOPE), conv3(out_channels, out_channels))
        self.side_path = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), *resampling(resample))

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        main = self.main_path1(self.adain1(x, vector))
        out: Tensor = self.main_path2(self.adain2(main, vector)) + self.side_path(x)
        return out
