"""The generator of xuehy/HiFiFace-pytorch: wider fusion blocks, bicubic identity input, two interpolation rates.

Upstream activates two tensors in place, so that their later readers see the activated values; here that is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .hififace import Decoder, Encoder, Generator, IdentityExtractor, Swap, Traits, identity_vector
from .hififace_blocks import SLOPE, AdaInResBlock, ResBlock, conv3, lerp, nearest_quarter


class XuehyUpsampling(nn.Module):
    """Fused features (n, 256, h/4, w/4), activated -> picture (n, 3, h, w) and mask (n, 1, h, w).

    The mask's head reads the features as the picture's head activated them.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(*(ResBlock(channels, channels, "up") for _ in range(2)))
        self.i_r_net = nn.Sequential(nn.LeakyReLU(SLOPE), conv3(channels, 3))
        self.m_r_net = nn.Sequential(conv3(channels, 1))

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net(fused)
        return self.i_r_net(features), torch.sigmoid(self.m_r_net(functional.leaky_relu(features, SLOPE)))


class XuehyFacialFusion(nn.Module):
    """xuehy's `Fusion`: sigmoid masks, two fusing blocks, the low-resolution picture from its own convolution."""

    def __init__(self, channels: int = 256, vector_size: int = 769) -> None:
        super().__init__()
        self.sigma = ResBlock(channels, channels)
        self.low_mask_predict = nn.Sequential(conv3(channels, 1))
        self.z_fuse_block_1 = AdaInResBlock(channels, channels, vector_size=vector_size)
        self.z_fuse_block_2 = AdaInResBlock(channels, channels, vector_size=vector_size)
        self.i_low_block = nn.Sequential(nn.LeakyReLU(SLOPE), conv3(channels, 3))
        self.f_up = XuehyUpsampling(channels)

    def low_mask(self, z_dec: Tensor) -> Tensor:
        return torch.sigmoid(self.low_mask_predict(z_dec))

    def fusing_blocks(self) -> tuple[AdaInResBlock, ...]:
        return self.z_fuse_block_1, self.z_fuse_block_2

    def low_channels(self) -> int:
        return 0

    def final(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """The upsampling reads the features as `i_low_block` activated them."""
        out: tuple[Tensor, Tensor] = self.f_up(functional.leaky_relu(fused, SLOPE))
        return out

    def forward(self, target: Tensor, z_enc: Tensor, z_dec: Tensor, vector: Tensor) -> Swap:
        low_mask = self.low_mask(z_dec)
        fused = lerp(low_mask, z_dec, self.sigma(z_enc))
        for block in self.fusing_blocks():
            fused = block(fused, vector)
        picture, mask = self.final(fused)
        low_picture = lerp(low_mask, self.i_low_block(fused), nearest_quarter(target))
        return Swap(lerp(mask, picture, target), low_picture, mask, low_mask)


def xuehy_generator(f_3d: nn.Module, f_id: nn.Module) -> Generator:
    """The generator of `generator_<step>.pth`, in evaluation mode."""
    extractor = IdentityExtractor(f_3d, f_id, resize="bicubic")
    return Generator(extractor, Encoder(), Decoder(), XuehyFacialFusion()).eval()


def xuehy_interpolated_vector(
    source: Traits, target: Traits, shape_rate: float | Tensor, id_rate: float | Tensor
) -> Tensor:
    """(n, 769) between target (rate 0) and source (rate 1); the identity is not brought back to unit length."""
    shape = lerp(shape_rate, source.coefficients, target.coefficients)
    return identity_vector(shape, target.coefficients, lerp(id_rate, source.identity, target.identity))
