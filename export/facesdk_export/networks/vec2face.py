"""Vec2Face's generator: an identity vector and a token mask become a face, under its published entry names.

Haiyu Wu et al., Vec2Face (arXiv 2409.02979).  Vec2Face+'s main model has the same layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: of the one published configuration, `vec2face_vit_base_patch16`
DIM, DEPTH, HEADS = 768, 12, 12
DECODER_DEPTH, DECODER_HEADS = 8, 16
MAP_SIZE = 7
#: entries of the published file that its network never uses
UNUSED = ("center_token.", "patch_embed.", "token_emb.position_ids")
_NORM_EPS = 1e-6


class Generator(nn.Module):
    """Pictures (B, 3, 112, 112), RGB, nominally in [-1, 1] and not clipped, of identity vectors.

    vector  (B, 512) as ArcFace gives them, not normalised.
    keep    (B, K) int64: rows that the encoder sees, ascending, row 0 (the image token) first.
    masked  (B, 50) bool: rows whose content is hidden; all rows outside `keep` are, row 0 never is.
    """

    def __init__(
        self,
        image_decoder: ImageDecoder,
        *,
        vector: int = 512,
        dim: int = DIM,
        depth: int = DEPTH,
        heads: int = HEADS,
        decoder_dim: int = DIM,
        decoder_depth: int = DECODER_DEPTH,
        decoder_heads: int = DECODER_HEADS,
        mlp_ratio: int = 4,
        map_size: int = MAP_SIZE,
        eps: float = _NORM_EPS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.map_size, count = map_size, map_size * map_size
        self.latent_prior_proj_f = nn.Linear(vector, dim)
        self.feature_token = nn.Linear(1, count)
        self.token_emb = TokenEmbedding(count + 1, dim, eps, dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, eps, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, count + 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_heads, mlp_ratio, eps, dropout) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps)
        self.im_decoder_proj = nn.Linear(decoder_dim, image_decoder.conv_in.in_channels)
        self.im_decoder = image_decoder

    def forward(self, vector: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        latent = self.encode(self.rows(vector), keep, masked)
        picture: Tensor = self.im_decoder(self.feature_map(self.decode(latent, keep, masked)))
        return picture

    def rows(self, vector: Tensor) -> Tensor:
        """(B, 50, dim): the projected vector, then a scaled and shifted copy of it for every place of the map."""
        projected = self.latent_prior_proj_f(vector)[:, None]
        copies = projected * self.feature_token.weight + self.feature_token.bias[:, None]
        return torch.cat((projected, copies), 1)

    def embedded(self, rows: Tensor, masked: Tensor) -> Tensor:
        """(B, 50, dim): hidden rows replaced by the projected vector, positions added, normalised."""
        out: Tensor = self.token_emb(torch.where(masked[..., None], rows[:, :1], rows))
        return out

    def encode(self, rows: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        """(B, K, dim): the encoder's output for the rows that it sees."""
        x = self._chosen(keep, rows.dtype) @ self.embedded(rows, masked)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def decode(self, latent: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        """(B, 50, decoder_dim): kept rows back in their places, hidden ones filled with row 0, decoded."""
        x = self.decoder_embed(latent)
        return self._decoded(x, x[:, :1], keep, masked)

    def feature_map(self, tokens: Tensor) -> Tensor:
        """(B, z, 7, 7): the image decoder's input, of tokens 1..49 in row-major order."""
        values = self.im_decoder_proj(tokens[:, 1:]).transpose(1, 2)
        return values.reshape(-1, self.im_decoder_proj.out_features, self.map_size, self.map_size)

    def _decoded(self, x: Tensor, fill: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        placed = self._chosen(keep, x.dtype).transpose(1, 2) @ x
        x = torch.where(masked[..., None], fill, placed) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        out: Tensor = self.decoder_norm(x)
        return out

    def _chosen(self, keep: Tensor, dtype: torch.dtype) -> Tensor:
        # a product with ones and zeros is exact, and unlike gather and scatter has a plain gradient
        positions = torch.arange(self.map_size**2 + 1, device=keep.device)
        return (keep[..., None] == positions).to(dtype)


class TokenEmbedding(nn.Module):
    """Learned positions added, LayerNorm."""

    def __init__(self, count: int, dim: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(count, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.LayerNorm(rows + self.position_embeddings.weight))
        return out


class Attention(nn.Module):
    """Self-attention (B, N, dim); the fused projection holds q, k, v, each with its heads side by side."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x)
        mixed = self.attn_drop(self._weights(q, k)) @ v
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out

    def weights(self, x: Tensor) -> Tensor:
        """(B, heads, query, key) after the softmax."""
        q, k, _ = self._heads(x)
        return self._weights(q, k)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax((q * self.scale) @ k.transpose(-2, -1), -1)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(functional.gelu(self.fc1(x))))
        return out


class Block(nn.Module):
    """Pre-norm transformer block (B, N, dim)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4, eps: float = _NORM_EPS, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps), Attention(dim, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps), MLP(dim, mlp_ratio, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageDecoder(nn.Module):
    """(B, out_channels, 16 H, 16 W) of a feature map (B, z, H, W); levels run from the last to the first."""

    def __init__(
        self,
        z: int = 256,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        blocks_per_level: int = 2,
        groups: int = 32,
        eps: float = _NORM_EPS,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z, width, 3, padding=1)
        self.mid = nn.Module()
        self.mid.block_1 = ResidualBlock(width, width, groups, eps)
        self.mid.block_2 = ResidualBlock(width, width, groups, eps)
        levels = []
        for number in reversed(range(len(ch_mult))):
            levels.append(Level(width, ch * ch_mult[number], blocks_per_level, groups, eps, doubles=number > 0))
            width = ch * ch_mult[number]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = nn.GroupNorm(groups, width, eps)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid.block_2(self.mid.block_1(self.conv_in(z)))
        for level in reversed(self.up):
            x = level(x)
        picture: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return picture


class Level(nn.Module):
    """Residual blocks, then, but for the last level to run, twice the side and a convolution."""

    def __init__(self, before: int, width: int, count: int, groups: int, eps: float, *, doubles: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if k else before, width, groups, eps) for k in range(count))
        self.upsample: nn.Module = Doubling(width) if doubles else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        out: Tensor = self.upsample(x)
        return out


class Doubling(nn.Module):
    """Nearest-neighbour doubling of the side, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(doubled(x))
        return out


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times; written so that its gradient is one sum, whatever the batch."""
    b, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(b, c, 2 * h, 2 * w)


class ResidualBlock(nn.Module):
    """(B, before, H, W) -> (B, width, H, W); convolutions have no bias.

    Where the width changes, the published network has no skip from x: its 1x1 `nin_shortcut` is applied to the
    branch's own output.  It looks like a mistake, but the weights were trained with it.
    """

    def __init__(self, before: int, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, before, eps), nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width, eps), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(width, width, 1, bias=False) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(functional.silu(self.norm1(x)))
        branch = self.conv2(functional.silu(self.norm2(branch)))
        return branch + (x if self.nin_shortcut is None else self.nin_shortcut(branch))
