"""The text half of CLIP as Stable Diffusion 1 uses it, under its published names, and its two engines."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextModel(nn.Module):
    """ids int64 (n, tokens) -> hidden (n, tokens, width) after the final norm; every token sees those before it.

    There is no padding mask: Stable Diffusion was trained without.  Sizes: openai/clip-vit-large-patch14.
    """

    def __init__(
        self, vocabulary: int = 49408, width: int = 768, layers: int = 12, heads: int = 12, hidden: int = 3072,
        tokens: int = 77, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        tables = {"token_embedding": vocabulary, "position_embedding": tokens}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(rows, width) for name, rows in tables.items()})
        blocks = nn.ModuleList(TextLayer(width, heads, hidden, eps) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layers": blocks})
        self.final_layer_norm = nn.LayerNorm(width, eps)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = TextEncoder(self)(TokenEmbedding(self)(ids))
        return hidden


class TokenEmbedding(nn.Module):
    """ids int64 (n, tokens) -> (n, tokens, width), each token's vector plus its place's."""

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        self.tokens, self.places = text.embeddings["token_embedding"], text.embeddings["position_embedding"]

    def forward(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.tokens(ids) + self.places.weight
        return embeddings


class TextEncoder(nn.Module):
    """Embeddings (n, tokens, width) -> hidden (n, tokens, width): what TextModel does after its tables."""

    mask: Tensor

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        self.layers, self.final_layer_norm = text.encoder["layers"], text.final_layer_norm
        places = text.embeddings["position_embedding"].weight
        later = torch.ones(len(places), len(places), dtype=torch.bool).triu(1)
        mask = torch.zeros(later.shape).masked_fill(later, float("-inf"))
        self.register_buffer("mask", mask.to(places.device), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        hidden = embeddings
        for layer in self.layers:
            hidden = layer(hidden, self.mask)
        normed: Tensor = self.final_layer_norm(hidden)
        return normed


class TextLayer(nn.Module):
    """Hidden (n, tokens, width) and what is added to the scores (tokens, tokens) -> hidden."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.self_attn = TextAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.mlp = TextPerceptron(width, hidden)
        self.layer_norm2 = nn.LayerNorm(width, eps)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask)
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class TextAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self._split(linear(hidden)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        weights = torch.softmax((query * self.scale) @ key.transpose(2, 3) + mask, -1)
        out: Tensor = self.out_proj((weights @ value).transpose(1, 2).reshape(hidden.shape))
        return out

    def _split(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TextPerceptron(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.fc1(hidden)
        out: Tensor = self.fc2(inner * torch.sigmoid(1.702 * inner))  # OpenAI's quick GELU
        return out
