"""The generator of maum-ai/hififace, under the entry names of its checkpoint.

`IdentityExtractor` reads shape and identity, `Encoder` reads the target, `Decoder` draws features of the new
identity, `SemanticFacialFusion` blends them into the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hififace_blocks import AdaInResBlock, Resample, ResBlock, Resize, conv3, lerp, nearest_quarter, resized

#: coefficients 0:80 are the identity's shape; 80:257 expression, texture, angles, light and translation
SHAPE_COEFFICIENTS = 80
IDENTITY_INPUT_PX = 112

ENCODER_CHANNELS = (64, 128, 256, 512, 512, 512, 512, 512)
ENCODER_RESAMPLE: tuple[Resample, ...] = ("down",) * 5 + ("none",) * 2
DECODER_CHANNELS = (512, 512, 512, 512, 512, 256)
DECODER_RESAMPLE: tuple[Resample, ...] = ("none", "none", "up", "up", "up")
FINAL_BLOCKS: tuple[tuple[int, int, Resample], ...] = (
    (256, 64, "up"), (64, 16, "up"), (16, 8, "none"), (8, 4, "none"),
)  # fmt: skip

InterpolationMode = Literal["identity", "3d", "all"]


class Swap(NamedTuple):
    """What a generator returns; pictures are not clamped, masks have the range of their activation."""

    picture: Tensor  # (n, 3, h, w)
    low_picture: Tensor  # (n, 3, h/4, w/4)
    mask: Tensor  # (n, 1, h, w)
    low_mask: Tensor  # (n, 1, h/4, w/4)


def identity_vector(source: Tensor, target: Tensor, identity: Tensor) -> Tensor:
    """(n, 769): the source's coefficients 0:80, the target's 80:257, then the 512 numbers of the identity."""
    return torch.cat([source[:, :SHAPE_COEFFICIENTS], target[:, SHAPE_COEFFICIENTS:], identity], 1)


def identity_input(face: Tensor, resize: Resize = "bilinear", size: int = IDENTITY_INPUT_PX) -> Tensor:
    """(n, 3, size, size) in [-1, 1] of a face in [0, 1]: the whole crop, without antialiasing, as in training."""
    return resized((face - 0.5) / 0.5, size, resize)


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1."""
    return functional.normalize(vectors, eps=1e-12)


class Traits(NamedTuple):
    """What `IdentityExtractor` reads of a face."""

    coefficients: Tensor  # (n, 257) 3DMM
    identity: Tensor  # (n, 512) ArcFace, unit length


def interpolated_vector(
    first: Traits, second: Traits, target: Tensor, rate: float | Tensor, mode: InterpolationMode
) -> Tensor:
    """(n, 769) between two sources for a target's coefficients.

    `rate` is the share of the first in the parts that `mode` names; the identity is brought back to unit length.
    """
    shape, identity = first
    if mode in ("3d", "all"):
        shape = lerp(rate, shape, second.coefficients)
    if mode in ("identity", "all"):
        identity = unit(lerp(rate, identity, second.identity))
    return identity_vector(shape, target, identity)


class IdentityExtractor(nn.Module):
    """`f_3d`: face in [0, 1], as it is -> 257 3DMM coefficients.  `f_id`: `identity_input` -> 512 numbers (ArcFace)."""

    def __init__(
        self, f_3d: nn.Module, f_id: nn.Module, resize: Resize = "bilinear", identity_px: int = IDENTITY_INPUT_PX
    ) -> None:
        super().__init__()
        self.f_3d, self.f_id, self.resize, self.identity_px = f_3d, f_id, resize, identity_px

    def traits(self, face: Tensor) -> Traits:
        """Both of a face (n, 3, h, w) in [0, 1]."""
        return Traits(self.f_3d(face), unit(self.f_id(identity_input(face, self.resize, self.identity_px))))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(n, 769) identity vector of a swap."""
        source_traits = self.traits(source)
        return identity_vector(source_traits.coefficients, self.f_3d(target), source_traits.identity)


class Encoder(nn.Module):
    """Target -> z_enc (n, 256, h/4, w/4), features after block `z_enc_after`, and bottleneck (n, 512, h/32, w/32)."""

    def __init__(
        self,
        channels: Sequence[int] = ENCODER_CHANNELS,
        resample: Sequence[Resample] = ENCODER_RESAMPLE,
        z_enc_after: int = 1,
    ) -> None:
        super().__init__()
        self.z_enc_after = z_enc_after
        self.conv_first = conv3(3, channels[0])
        steps = zip(channels, channels[1:], resample, strict=False)
        self.block_list = nn.ModuleList(ResBlock(*step) for step in steps)

    def forward(self, target: Tensor) -> tuple[Tensor, Tensor]:
        features = [self.conv_first(target)]
        for block in self.block_list:
            features.append(block(features[-1]))
        return features[self.z_enc_after + 1], features[-1]


class Decoder(nn.Module):
    """Bottleneck and identity vector -> z_dec (n, 256, h/4, w/4)."""

    def __init__(
        self,
        channels: Sequence[int] = DECODER_CHANNELS,
        resample: Sequence[Resample] = DECODER_RESAMPLE,
        vector_size: int = 769,
    ) -> None:
        super().__init__()
        steps = zip(channels, channels[1:], resample, strict=False)
        self.block_list = nn.ModuleList(AdaInResBlock(*step, vector_size) for step in steps)

    def forward(self, bottleneck: Tensor, vector: Tensor) -> Tensor:
        x = bottleneck
        for block in self.block_list:
            x = block(x, vector)
        return x


class FinalUpsampling(nn.Module):
    """Fused features (n, 256, h/4, w/4) -> (n, 4, h, w): mask before its activation, then RGB."""

    def __init__(self, blocks: Sequence[tuple[int, int, Resample]] = FINAL_BLOCKS) -> None:
        super().__init__()
        self.net = nn.Sequential(*(ResBlock(*block) for block in blocks))

    def forward(self, fused: Tensor) -> Tensor:
        out: Tensor = self.net(fused)
        return out


class Fusion(Protocol):
    """What the fusion modules of both generators share: `SwapDecoder` takes these parts, `Generator` the whole."""

    sigma: ResBlock

    def low_mask(self, z_dec: Tensor) -> Tensor:
        """(n, 1, h/4, w/4) mask of the new identity's features."""

    def fusing_blocks(self) -> tuple[AdaInResBlock, ...]:
        """The blocks that the blended features pass through."""

    def low_channels(self) -> int:
        """How many of the last block's output channels, from the first, serve the low-resolution picture alone."""

    def final(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Picture (n, 3, h, w) before blending and mask (n, 1, h, w) of the fused features."""

    def __call__(self, target: Tensor, z_enc: Tensor, z_dec: Tensor, vector: Tensor) -> Swap:
        """Pictures and masks at both resolutions."""


class SemanticFacialFusion(nn.Module):
    """maum-ai's `Fusion`: tanh masks, one fusing block whose channels 0:3 are the low-resolution picture."""

    def __init__(
        self,
        sigma: tuple[int, int] = (256, 256),
        low_mask: tuple[int, int] = (256, 1),
        z_fuse: tuple[int, int] = (256, 259),
        f_up: Sequence[tuple[int, int, Resample]] = FINAL_BLOCKS,
        vector_size: int = 769,
    ) -> None:
        super().__init__()
        self.sigma = ResBlock(*sigma)
        self.low_mask_predict = ResBlock(*low_mask)
        self.z_fuse_block = AdaInResBlock(*z_fuse, vector_size=vector_size)
        self.f_up = FinalUpsampling(f_up)

    def low_mask(self, z_dec: Tensor) -> Tensor:
        return torch.tanh(self.low_mask_predict(z_dec))

    def fusing_blocks(self) -> tuple[AdaInResBlock, ...]:
        return (self.z_fuse_block,)

    def low_channels(self) -> int:
        return 3

    def final(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        out = self.f_up(fused)
        return out[:, 1:], torch.tanh(out[:, :1])

    def forward(self, target: Tensor, z_enc: Tensor, z_dec: Tensor, vector: Tensor) -> Swap:
        low_mask = self.low_mask(z_dec)
        fused = self.z_fuse_block(lerp(low_mask, z_dec, self.sigma(z_enc)), vector)
        low_picture, fused = fused[:, :3], fused[:, 3:]
        picture, mask = self.final(fused)
        low_picture = lerp(low_mask, low_picture, nearest_quarter(target))
        return Swap(lerp(mask, picture, target), low_picture, mask, low_mask)


class Generator(nn.Module):
    """Source and target faces (n, 3, h, w) in [0, 1] -> `Swap`; h and w are multiples of 32, at least 64."""

    def __init__(self, id_extractor: IdentityExtractor, encoder: Encoder, decoder: Decoder, sff_module: Fusion) -> None:
        super().__init__()
        self.id_extractor, self.encoder, self.decoder, self.sff_module = id_extractor, encoder, decoder, sff_module

    def swap(self, target: Tensor, vector: Tensor) -> Swap:
        """The swap for an identity vector (n, 769)."""
        z_enc, bottleneck = self.encoder(target)
        return self.sff_module(target, z_enc, self.decoder(bottleneck, vector), vector)

    def forward(self, source: Tensor, target: Tensor) -> Swap:
        return self.swap(target, self.id_extractor(source, target))


def published_generator(f_3d: nn.Module, f_id: nn.Module) -> Generator:
    """The generator of `hififace_opensouce_299999.ckpt`, in evaluation mode."""
    return Generator(IdentityExtractor(f_3d, f_id), Encoder(), Decoder(), SemanticFacialFusion()).eval()
