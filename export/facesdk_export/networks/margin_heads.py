"""Margin heads: what recognition losses make of the cosines between embeddings and class centres.

Forms, defaults and gradients of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, `losses.py`.  All heads are called alike:
`head(cosines, labels, embeddings)` with cosines (n, classes) in [-1, 1], labels (n,) or (n, 1) int64, -1 where the
class is in another shard, and embeddings (n, d) before normalisation, which MagFace alone reads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facesdk.errors import UsageError

#: factor between the cosine and the softmax's input, in every published configuration
SCALE = 64.0
#: weight of MagFace's regulariser in the total (the original's `partial_fc.py`)
REGULARISER_WEIGHT = 20.0
_CLAMP = 1e-7


class AngularMargin(nn.Module):
    """Scaled cosines in which the angle to the row's own class is made larger.

    The gradient is that of plain scaled cosines within the clamp, as in the original: the margin takes no part in it.
    """

    def __init__(self, scale: float, margin: float, clamp: float) -> None:
        super().__init__()
        self.scale, self.margin, self.clamp = scale, margin, clamp

    def forward(self, cosines: Tensor, labels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        own = _own(labels)
        cosines = cosines.clamp(-1 + self.clamp, 1 - self.clamp)
        angles = cosines.detach().arccos()
        angles[own] = self.enlarged(angles[own])
        # the difference is zero, its gradient is not
        return self.scale * (angles.cos() + (cosines - cosines.detach()))

    def enlarged(self, angles: Tensor) -> Tensor:
        """The angles, in radians, with the margin."""
        raise NotImplementedError


class ArcFace(AngularMargin):
    """cos(angle + margin) for the row's own class."""

    def __init__(self, scale: float = SCALE, margin: float = 0.5, *, clamp: float = _CLAMP) -> None:
        super().__init__(scale, margin, clamp)

    def enlarged(self, angles: Tensor) -> Tensor:
        return angles + self.margin


class SphereFace(AngularMargin):
    """cos(margin * angle) for the row's own class."""

    def __init__(self, scale: float = SCALE, margin: float = 1.7, *, clamp: float = _CLAMP) -> None:
        super().__init__(scale, margin, clamp)

    def enlarged(self, angles: Tensor) -> Tensor:
        return angles * self.margin


class CosFace(nn.Module):
    """cos(angle) - margin for the row's own class."""

    def __init__(self, scale: float = SCALE, margin: float = 0.4, *, clamp: float = _CLAMP) -> None:
        super().__init__()
        self.scale, self.margin, self.clamp = scale, margin, clamp

    def forward(self, cosines: Tensor, labels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        own = _own(labels)
        logits = cosines.clamp(-1 + self.clamp, 1 - self.clamp)
        return self.scale * logits.index_put(own, logits[own] - self.margin)


def combined(scale: float = SCALE, m1: float = 1.0, m2: float = 0.0, m3: float = 0.4) -> nn.Module:
    """ArcFace of margin m2 where m1 is 1 and m3 is 0, else CosFace of margin m3, which must be positive.

    So the original decides: with a positive m3 it reads neither m1 nor m2.
    """
    if m3 > 0:
        return CosFace(scale, m3, clamp=0)
    if (m1, m3) == (1, 0):
        return ArcFace(scale, m2, clamp=0)
    raise UsageError(
        f"combined margins of {m1}, {m2}, {m3} have no published form",
        remedy="give a positive m3, or m1 = 1 and m3 = 0 with the margin in m2",
    )


class MagFace(nn.Module):
    """cos(angle + margin) for the row's own class, the margin linear in the embedding's norm."""

    def __init__(
        self,
        scale: float = SCALE,
        norms: tuple[float, float] = (10.0, 110.0),
        margins: tuple[float, float] = (0.45, 0.8),
    ) -> None:
        super().__init__()
        self.scale, self.norms, self.margins = scale, norms, margins

    def forward(self, cosines: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        own = _own(labels)
        (low, high), (least, most) = self.norms, self.margins
        margins = (most - least) / (high - low) * (self._lengths(embeddings)[own[0]] - low) + least
        cosine = cosines[own]
        moved = cosine * margins.cos() - (1 - cosine**2).sqrt() * margins.sin()
        return self.scale * cosines.index_put(own, moved)

    def regulariser(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """mean(norm / highest norm^2 + 1 / norm) of the rows with a label; REGULARISER_WEIGHT is its factor.

        0 where a shard has none of the batch's classes (the mean of nothing in the original).
        """
        lengths = self._lengths(embeddings)[_own(labels)[0]]
        return (lengths / self.norms[1] ** 2 + 1 / lengths).sum() / max(len(lengths), 1)

    def _lengths(self, embeddings: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1)
        return lengths.clamp(*self.norms)


class CurricularFace(nn.Module):
    """ArcFace whose hard examples weigh more the further the training is.

    `t` follows the mean of all cosines of the labelled rows; a cosine c of another class above the row's own with the
    margin becomes c (t + c).  Rows of own angles beyond pi - margin lose a constant instead.
    """

    t: Tensor

    def __init__(
        self,
        scale: float = SCALE,
        margin: float = 0.5,
        *,
        momentum: float = 0.01,
        start: float = 0.0,
        clamp: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale, self.margin, self.momentum, self.clamp = scale, margin, momentum, clamp
        self.register_buffer("t", torch.full((1,), float(start)))

    def forward(self, cosines: Tensor, labels: Tensor, embeddings: Tensor | None = None) -> Tensor:
        own = _own(labels)
        logits = cosines.clamp(-1 + self.clamp, 1 - self.clamp)
        rows, cosine = logits[own[0]], logits[own]
        if len(rows):
            self.t = self.momentum * rows.detach().mean() + (1 - self.momentum) * self.t
        moved = cosine * math.cos(self.margin) - (1 - cosine**2).sqrt() * math.sin(self.margin)
        rows = torch.where(rows > moved[:, None], rows * (self.t + rows), rows)
        fallen = cosine - math.sin(self.margin) * self.margin
        logits = logits.index_put(own[:1], rows)
        return self.scale * logits.index_put(own, torch.where(cosine > -math.cos(self.margin), moved, fallen))


def _own(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose class is in this shard, and the class of each."""
    labels = labels.reshape(-1)
    rows = torch.nonzero(labels != -1).reshape(-1)
    return rows, labels[rows]
