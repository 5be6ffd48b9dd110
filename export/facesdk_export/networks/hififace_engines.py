"""HifiFace as the modules that become engines: the published arithmetic in an order that costs less.

Equal to the published form up to rounding.  Of the 48.5 G multiply-adds of encoder, decoder and fusion at 256 px
34 G are left, and what follows from the target alone (`TargetEncoder`) is apart from what follows from the source.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hififace import IDENTITY_INPUT_PX, Decoder, Encoder, Fusion, Generator, identity_input, unit
from .hififace_blocks import SLOPE, AdaIn, AdaInResBlock, ResBlock, Resize, convolutions, lerp, resampling

#: factor and offset of one normalisation, each (n, c, 1, 1)
Style: TypeAlias = tuple[Tensor, Tensor]


class FoldedDownsampling(nn.Module):
    """A `ResBlock` that halves the size, its resampling moved before the convolutions: a quarter of their work.

    mean2x2(conv3x3(x)) is the stride-2 conv3x3 of the overlapping 2x2 means of x; mean2x2 and conv1x1 commute.
    The first bias is gone: the normalisation behind it takes any constant away.
    """

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.first, self.second, self.side = convolutions(block.main_path, block.side_path)

    def forward(self, x: Tensor) -> Tensor:
        means = functional.avg_pool2d(_normalised(x), 2, stride=1, padding=1, count_include_pad=True)
        halved = functional.conv2d(means, self.first.weight, stride=2)
        out: Tensor = self.second(_normalised(halved)) + self.side(functional.avg_pool2d(x, 2))
        return out


def fold_downsampling(block: nn.Module) -> nn.Module:
    """`FoldedDownsampling` of a `ResBlock` with "down", with the same weights; any other block itself."""
    return FoldedDownsampling(block) if isinstance(block, ResBlock) and block.resample == "down" else block


def _normalised(x: Tensor) -> Tensor:
    return functional.leaky_relu(functional.instance_norm(x), SLOPE)


class Styles(nn.Module):
    """The styles of many `AdaIn` layers, from the identity vector by one matrix product."""

    def __init__(self, layers: Sequence[AdaIn]) -> None:
        super().__init__()
        parts = [part for layer in layers for part in (layer.std_style_fc, layer.mean_style_fc)]
        self.sizes = [part.out_features for part in parts]
        self.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
        self.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))

    def forward(self, vector: Tensor) -> list[Style]:
        styles = functional.linear(vector, self.weight, self.bias)[..., None, None]
        parts = torch.split(styles, self.sizes, 1)
        return list(zip(parts[::2], parts[1::2], strict=True))


class StyledBlock(nn.Module):
    """An `AdaInResBlock` that takes its two styles ready made, without its first `dropped` output channels."""

    def __init__(self, block: AdaInResBlock, dropped: int = 0) -> None:
        super().__init__()
        self.first, second, side = convolutions(block.main_path1, block.main_path2, block.side_path)
        self.second, self.side = _without_first(second, dropped), _without_first(side, dropped)
        self.resampled = nn.Sequential(*resampling(block.resample))

    def forward(self, x: Tensor, style1: Style, style2: Style) -> Tensor:
        main = self.resampled(self.first(_styled(x, style1)))
        out: Tensor = self.second(_styled(main, style2)) + self.resampled(self.side(x))
        return out


def _styled(x: Tensor, style: Style) -> Tensor:
    return functional.leaky_relu(style[0] * functional.instance_norm(x) + style[1], SLOPE)


def _without_first(conv: nn.Conv2d, dropped: int) -> nn.Conv2d:
    kept = copy.deepcopy(conv)
    kept.out_channels -= dropped
    for name, values in conv.named_parameters():
        setattr(kept, name, nn.Parameter(values.detach()[dropped:]))
    return kept


class IdentityEncoder(nn.Module):
    """Face (n, 3, h, w) in [0, 1] -> identity (n, 512) of unit length."""

    def __init__(self, f_id: nn.Module, resize: Resize = "bilinear", identity_px: int = IDENTITY_INPUT_PX) -> None:
        super().__init__()
        self.f_id, self.resize, self.identity_px = f_id, resize, identity_px

    @classmethod
    def from_generator(cls, generator: Generator) -> IdentityEncoder:
        extractor = generator.id_extractor
        return cls(extractor.f_id, extractor.resize, extractor.identity_px)

    def forward(self, face: Tensor) -> Tensor:
        return unit(self.f_id(identity_input(face, self.resize, self.identity_px)))


class ShapeEncoder(nn.Module):
    """Face (n, 3, h, w) in [0, 1] -> 3DMM coefficients (n, 257)."""

    def __init__(self, f_3d: nn.Module) -> None:
        super().__init__()
        self.f_3d = f_3d

    @classmethod
    def from_generator(cls, generator: Generator) -> ShapeEncoder:
        return cls(generator.id_extractor.f_3d)

    def forward(self, face: Tensor) -> Tensor:
        out: Tensor = self.f_3d(face)
        return out


class TargetEncoder(nn.Module):
    """Target (n, 3, h, w) in [0, 1] -> skip = sigma(z_enc) (n, 256, h/4, w/4), bottleneck (n, 512, h/32, w/32)."""

    def __init__(self, encoder: Encoder, sigma: ResBlock) -> None:
        super().__init__()
        self.encoder, self.sigma = copy.deepcopy(encoder), sigma
        self.encoder.block_list = nn.ModuleList(fold_downsampling(block) for block in encoder.block_list)

    @classmethod
    def from_generator(cls, generator: Generator) -> TargetEncoder:
        return cls(generator.encoder, generator.sff_module.sigma)

    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        z_enc, bottleneck = self.encoder(target)
        return self.sigma(z_enc), bottleneck


class SwapDecoder(nn.Module):
    """Target, what `TargetEncoder` makes of it, identity vector (n, 769) -> swapped (n, 3, h, w), mask (n, 1, h, w).

    The picture is blended with the target and not clamped; the mask has the range of its activation, tanh or sigmoid.
    """

    def __init__(self, decoder: Decoder, fusion: Fusion) -> None:
        super().__init__()
        fusing = fusion.fusing_blocks()
        dropped = [0] * (len(fusing) - 1) + [fusion.low_channels()]
        blocks = *decoder.block_list, *fusing
        self.styles = Styles([layer for block in blocks for layer in (block.adain1, block.adain2)])
        self.decoder = nn.ModuleList(StyledBlock(block) for block in decoder.block_list)
        self.fusing = nn.ModuleList(map(StyledBlock, fusing, dropped))
        self.fusion = fusion

    @classmethod
    def from_generator(cls, generator: Generator) -> SwapDecoder:
        return cls(generator.decoder, generator.sff_module)

    def forward(self, target: Tensor, skip: Tensor, bottleneck: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        styles = iter(self.styles(vector))
        z_dec = _through(self.decoder, bottleneck, styles)
        fused = _through(self.fusing, lerp(self.fusion.low_mask(z_dec), z_dec, skip), styles)
        picture, mask = self.fusion.final(fused)
        return lerp(mask, picture, target), mask


def _through(blocks: Iterable[nn.Module], x: Tensor, styles: Iterator[Style]) -> Tensor:
    for block in blocks:
        x = block(x, next(styles), next(styles))
    return x
