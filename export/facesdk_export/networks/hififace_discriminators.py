"""The discriminators of both HifiFace systems, for training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .hififace_blocks import SLOPE, conv3, resampling


def halved(x: Tensor) -> Tensor:
    """Mean of 3x3 at stride 2; at the border only of what is inside the picture."""
    return functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)


class Discriminator(nn.Module):
    """Patch scores (n, 1, h', w') at full, half, quarter, ... resolution, full first (pix2pixHD, maum-ai's choice).

    `layer{scales - 1}` reads the full resolution, `layer0` the lowest.
    """

    def __init__(
        self,
        input_channels: int = 3,
        base_channels: int = 64,
        layers: int = 3,
        scales: int = 3,
        kernel: int = 4,
        padding: int = 2,
    ) -> None:
        super().__init__()
        self.scales = scales
        for scale in range(scales):
            self.add_module(f"layer{scale}", _patch_scores(input_channels, base_channels, layers, kernel, padding))

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = []
        for scale in reversed(range(self.scales)):
            scores.append(self.get_submodule(f"layer{scale}")(x))
            x = halved(x)
        return scores


def _patch_scores(input_channels: int, base_channels: int, layers: int, kernel: int, padding: int) -> nn.Sequential:
    """Convolutions of stride 2, then two of stride 1; widths double up to 512, batch norm except first and last."""

    def conv(before: int, after: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, kernel, stride, padding)

    widths = [min(base_channels * 2**i, 512) for i in range(layers + 1)]
    modules: list[nn.Module] = [conv(input_channels, widths[0], 2), nn.LeakyReLU(SLOPE)]
    for i in range(1, layers + 1):
        stride = 2 if i < layers else 1
        modules += [conv(widths[i - 1], widths[i], stride), nn.BatchNorm2d(widths[i]), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*modules, conv(widths[-1], 1, 1))


class XuehyDiscriminatorBlock(nn.Module):
    """Residual block without normalisation that halves the size.

    The side path reads the activated input: upstream the main path activates it in place.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main_path = nn.Sequential(
            nn.LeakyReLU(SLOPE), conv3(in_channels, out_channels), *resampling("down"),
            nn.LeakyReLU(SLOPE), conv3(out_channels, out_channels),
        )  # fmt: skip
        self.side_path = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), *resampling("down"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main_path(x) + self.side_path(functional.leaky_relu(x, SLOPE))
        return out


class XuehyDiscriminator(nn.Module):
    """Two scores (n, 2, 1, 1) of pictures (n, 3, 256, 256), activated as upstream has it."""

    def __init__(self, input_channels: int = 3, channels: Sequence[int] = (64, 128, 256, 512, 512, 512, 512)) -> None:
        super().__init__()
        last = channels[-1]
        self.sequence = nn.Sequential(
            conv3(input_channels, channels[0]),
            *(XuehyDiscriminatorBlock(*pair) for pair in itertools.pairwise(channels)),
            nn.Conv2d(last, last, 4), nn.LeakyReLU(SLOPE), nn.Conv2d(last, 2, 1), nn.LeakyReLU(SLOPE),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.sequence(x)
        return out
