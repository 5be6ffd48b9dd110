"""The two halves of Stable Diffusion's autoencoder as engines, on the layers of diffusers' AutoencoderKL.

The layers' own `forward` depend on the batch size, which an engine leaves free; what they compute is written out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from .fused_attention import attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Decoder(nn.Module):
    """latent (n, 4, h, w), scaled as the sampling loop has it -> image (n, 3, 8h, 8w), nominally in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scaling_factor: float = vae.config.scaling_factor
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        decoder: Any = self.decoder
        x = decoder.conv_in(self.post_quant_conv(latent / self.scaling_factor))
        x = middle(decoder.mid_block, x)
        for block in decoder.up_blocks:
            x = resnets(block, x)
            for upsampler in block.upsamplers or ():
                x = upsampler.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return head(decoder, x)


class Encoder(nn.Module):
    """image uint8 (n, H, W, 3) -> mean, logvar (n, 4, H/8, W/8) of the latent before scaling.

    logvar_range  where the log variance is clamped: CompVis/latent-diffusion, DiagonalGaussianDistribution.
    """

    def __init__(self, vae: AutoencoderKL, logvar_range: tuple[float, float] = (-30.0, 20.0)) -> None:
        super().__init__()
        self.logvar_range = logvar_range
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.moments(image.float().permute(0, 3, 1, 2) / 127.5 - 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of a float image (n, 3, H, W) in [-1, 1]."""
        encoder: Any = self.encoder
        x = encoder.conv_in(image)
        for block in encoder.down_blocks:
            x = resnets(block, x)
            for downsampler in block.downsamplers or ():
                x = downsampler.conv(functional.pad(x, (0, 1, 0, 1)))
        mean, logvar = self.quant_conv(head(encoder, middle(encoder.mid_block, x))).chunk(2, 1)
        return mean, logvar.clamp(*self.logvar_range)


# -- parts ------------------------------------------------------------------------------------------------


def resnets(block: Any, x: Tensor) -> Tensor:
    for each in block.resnets:
        x = resnet(each, x)
    return x


def resnet(block: Any, x: Tensor) -> Tensor:
    branch = block.conv1(functional.silu(block.norm1(x)))
    branch = block.conv2(functional.silu(block.norm2(branch)))
    shortcut: Tensor = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return shortcut + branch


def middle(block: Any, x: Tensor) -> Tensor:
    first, last = block.resnets
    return resnet(last, attended(block.attentions[0], resnet(first, x)))


def attended(block: Any, x: Tensor) -> Tensor:
    """Every pixel's attention to all, in one head, added to them."""
    rows = block.group_norm(x).flatten(2).transpose(1, 2)
    mixed = attention(block.to_q(rows), block.to_k(rows), block.to_v(rows), block.heads)
    out: Tensor = x + block.to_out[0](mixed).transpose(1, 2).reshape(x.shape)
    return out


def head(half: Any, x: Tensor) -> Tensor:
    out: Tensor = half.conv_out(functional.silu(half.conv_norm_out(x)))
    return out
