"""FastComposer's fusion of object embeddings into the text encoder's output, under its published entry names.

Xiao et al., "FastComposer: Tuning-Free Multi-Subject Image Generation with Localized Attention".  In the published
`pytorch_model.bin` the names begin with `postfuse_module.`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PostFusion(nn.Module):
    """Text embeddings (B, T, dim) whose flagged tokens are fused with an object each.

    objects  (B, N, K, dim): N objects of K vectors each, of which the first counts[b] (B,) are there.
    flagged  (B, T): tokens that carry an object; the first such token of the batch has the first vector, and so on.
    A flagged token for which no vector is left stays as it is.
    """

    def __init__(self, dim: int = 768) -> None:
        super().__init__()
        self.mlp1, self.mlp2 = MLP(2 * dim, dim), MLP(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, text: Tensor, objects: Tensor, counts: Tensor, flagged: Tensor) -> Tensor:
        placed, there = _placed(objects, counts, flagged)
        fused = self.mlp1(torch.cat((text, placed), -1)) + text
        return torch.where(there, self.layer_norm(fused + self.mlp2(fused)), text)


class MLP(nn.Module):
    """(..., before) -> (..., dim): LayerNorm, then two linear layers with an exact GELU between them."""

    def __init__(self, before: int, dim: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(before)
        self.fc1, self.fc2 = nn.Linear(before, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.layernorm(x))))
        return out


def scattered(text: Tensor, objects: Tensor, counts: Tensor, flagged: Tensor) -> Tensor:
    """The text with the objects' vectors in place of the flagged tokens; arguments as those of PostFusion."""
    placed, there = _placed(objects, counts, flagged)
    return torch.where(there, placed, text)


def _placed(objects: Tensor, counts: Tensor, flagged: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, dim) each token's object vector, 0 where it has none, and (B, T, 1) whether it has one."""
    present = torch.arange(objects.shape[1], device=objects.device) < counts[:, None]
    rows = present[..., None].expand(objects.shape[:3])
    # a product with ones and zeros is exact, and needs no shape that depends on data
    tokens, vectors = flagged.bool().flatten(), rows.flatten()
    same = tokens.long().cumsum(0)[:, None] == vectors.long().cumsum(0)
    chosen = (same & tokens[:, None] & vectors).to(objects.dtype)
    placed = chosen @ objects.flatten(0, 2)
    return placed.reshape(*flagged.shape, -1), chosen.any(1).reshape(*flagged.shape, 1)
