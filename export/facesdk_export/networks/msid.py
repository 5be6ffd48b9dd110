"""MSID: the identity encoder of Face2Diffusion, a ViT whose class token is tapped at four depths.

Shiohara and Yamasaki, "Face2Diffusion for Fast and Editable Face Personalization" (CVPR 2024); the entry names are
those of `msid.pt`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from facesdk.errors import ConversionError

from .entry_sizes import numbers_in, size_of

#: blocks, counted from 0, after which the class token is tapped
DEPTHS = (2, 5, 8, 11)
#: of every published file, which do not tell it
HEADS = 12
#: the ViT's last normalisation: its output is never used
UNUSED = ("norm.",)


class MSID(nn.Module):
    """(B, taps * dim) vector, not normalised, of aligned RGB faces (B, 3, size, size) in [-1, 1].

    depths    blocks after which there is a tap, normalised over the batch's statistics and then over its channels.
    eps       of the blocks' LayerNorms; tap_eps  of the taps' normalisations.
    momentum  with which a call in training mode moves the running statistics of the taps.
    """

    def __init__(
        self,
        depths: Sequence[int] = DEPTHS,
        *,
        size: int = 112,
        patch: int = 8,
        dim: int = 384,
        depth: int = 12,
        heads: int = HEADS,
        hidden: int = 1536,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        tap_eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.depths, self.size, self.width = tuple(depths), size, len(depths) * dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, qkv_bias, eps) for _ in range(depth))
        self.norms = nn.ModuleDict(
            {
                f"layer_{each}": nn.Sequential(nn.BatchNorm1d(dim, tap_eps, momentum), nn.LayerNorm(dim, tap_eps))
                for each in depths
            }
        )

    def forward(self, image: Tensor, depths: Sequence[int] | None = None) -> Tensor:
        """The taps side by side; of other `depths` than the network's own, the class token as it is."""
        tokens = self.class_tokens(image)
        return torch.cat([self._tap(each, tokens[each]) for each in (self.depths if depths is None else depths)], 1)

    def class_tokens(self, image: Tensor) -> list[Tensor]:
        """The class token (B, dim) after each block."""
        x = torch.cat((self.cls_token.expand(image.shape[0], -1, -1), self.patches(image)), 1) + self.pos_embed
        tokens = []
        for block in self.blocks[:-1]:
            x = block(x)
            tokens.append(x[:, 0])
        # nothing reads the other tokens of the last block
        return [*tokens, self.blocks[-1](x, 1)[:, 0]]

    def patches(self, image: Tensor) -> Tensor:
        """(B, patches, dim) in row-major order, without positions."""
        out: Tensor = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        return out

    def _tap(self, depth: int, token: Tensor) -> Tensor:
        name = f"layer_{depth}"
        return self.norms[name](token) if name in self.norms else token


class Block(nn.Module):
    """Pre-norm transformer block (B, N, dim); with `rows`, its output for the first so many tokens alone."""

    def __init__(self, dim: int, heads: int, hidden: int, qkv_bias: bool, eps: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps), Attention(dim, heads, qkv_bias)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps), MLP(dim, hidden)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        x = x[:, :rows] + self.attn(self.norm1(x), rows)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Attention(nn.Module):
    """Self-attention; rows of the fused projection hold query, key, value, each with its heads side by side."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query[:, :rows], key, value))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


def msid_of(entries: Mapping[str, Tensor]) -> MSID:
    """The network of a checkpoint's entries on the meta device; what they do not say has the published size.

    Raises ConversionError for a file with fewer taps than the published ones, or a width that its heads do not divide.
    """
    depths = numbers_in(entries, r"norms\.layer_(\d+)\.") or list(DEPTHS)
    dim, patch = (size_of(entries, "patch_embed.proj.weight", axis, size) for axis, size in ((0, 384), (2, 8)))
    _check(depths, dim)
    side = math.isqrt(size_of(entries, "pos_embed", 1, 197) - 1)
    with torch.device("meta"):
        return MSID(
            depths, size=side * patch, patch=patch, dim=dim, depth=len(numbers_in(entries, r"blocks\.(\d+)\.")) or 12,
            hidden=size_of(entries, "blocks.0.mlp.fc1.weight", 0, 4 * dim), qkv_bias=_has_bias(entries),
        )  # fmt: skip


def _has_bias(entries: Mapping[str, Tensor]) -> bool:
    return "blocks.0.attn.qkv.bias" in entries or "blocks.0.attn.qkv.weight" not in entries


def _check(depths: Sequence[int], dim: int) -> None:
    if len(depths) < len(DEPTHS):
        raise ConversionError(
            f"the file has an MSID encoder with {len(depths)} of {len(DEPTHS)} taps: at depth {_listed(depths)}",
            cause="MF2D's own training builds the deepest tap alone, so that the rest of its vector is the raw class "
            "token; mapping networks are trained on all taps, and the published programs do not load such a file",
            remedy="give the msid.pt that Face2Diffusion publishes; MF2D's model.pt does not stand in for it",
        )
    if dim % HEADS:
        raise ConversionError(
            f"the file's network has tokens of width {dim}",
            cause=f"MSID's attention divides them into {HEADS} heads",
            remedy="check that it is the file of an MSID encoder: msid.pt",
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
