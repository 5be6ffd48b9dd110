"""Face2Diffusion's mapping network f_map: an identity becomes two token embeddings of the text encoder.

Entry names of `mapping.pt`, and of MF2D's `fmap_epoch*.pth`, which have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from .entry_sizes import numbers_in, size_of


class MappingNetwork(nn.Module):
    """Embeddings (B, token) of the first and of the last of two tokens, of identities (B, identity).

    expression  size of the vector beside the identity; the published 64 are coefficients of a 3D face model.
    dropout     acts in training only.
    """

    def __init__(
        self,
        identity: int = 1536,
        width: int = 1536,
        token: int = 768,
        *,
        layers: int = 2,
        expression: int = 64,
        dropout: float = 0.1,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.identity, self.expression, self.token = identity, expression, token
        self.null_exp = nn.Parameter(torch.zeros(expression))
        self.i2t_first = Branch(identity + expression, width, token, layers, dropout, slope)
        self.i2t_last = Branch(identity + expression, width, token, layers, dropout, slope)

    def forward(
        self, identity: Tensor, expression: Tensor | None = None, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(first, last).

        expression  (B, expression); without it, in every row the learned vector that stands for "any".
        given       (B,) 1: use the row's expression, 0: the learned one; between them, a mixture.
        """
        learned = self.null_exp.expand(identity.shape[0], -1)
        if expression is None:
            expression = learned
        elif given is not None:
            expression = expression * given[:, None] + learned * (1 - given[:, None])
        x = torch.cat((identity, expression), 1)
        return self.i2t_first(x), self.i2t_last(x)


class Branch(nn.Module):
    """A perceptron: (B, before) -> (B, token)."""

    def __init__(self, before: int, width: int, token: int, layers: int, dropout: float, slope: float) -> None:
        super().__init__()
        widths = [before, *[width] * layers]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.Dropout(dropout), nn.LeakyReLU(slope)) for a, b in pairwise(widths)
        )
        self.fc_out = nn.Linear(widths[-1], token)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.fc_out(x)
        return out


def mapping_of(entries: Mapping[str, Tensor]) -> MappingNetwork:
    """The network of a checkpoint's entries on the meta device; what they do not say has the published size."""
    expression = size_of(entries, "null_exp", 0, 64)
    with torch.device("meta"):
        return MappingNetwork(
            size_of(entries, "i2t_first.layers.0.0.weight", 1, 1536 + expression) - expression,
            size_of(entries, "i2t_first.layers.0.0.weight", 0, 1536),
            size_of(entries, "i2t_first.fc_out.weight", 0, 768),
            layers=len(numbers_in(entries, r"i2t_first\.layers\.(\d+)\.")) or 2, expression=expression,
        )  # fmt: skip
