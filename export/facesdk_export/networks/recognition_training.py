"""What arcface_torch trains recognition networks with, beside the margin: cosines, cross-entropy, learning rate."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from facesdk.errors import UsageError

#: least probability whose logarithm is taken (the original's `DistCrossEntropy`)
LEAST_PROBABILITY = 1e-30


def cosines(embeddings: Tensor, centres: Tensor) -> Tensor:
    """(n, classes) in [-1, 1] between embeddings (n, d) and class centres (classes, d), none of them normalised."""
    return functional.linear(functional.normalize(embeddings), functional.normalize(centres)).clamp(-1, 1)


def cross_entropy(logits: Tensor, labels: Tensor, least: float = LEAST_PROBABILITY) -> Tensor:
    """Mean negative logarithm of the probability of each row's class (n,), which counts as `least` at the least.

    The gradient is that of the softmax cross-entropy throughout, as in the original.
    """
    plain = functional.cross_entropy(logits, labels)
    own = torch.softmax(logits.detach(), 1).gather(1, labels[:, None])
    # the difference is a constant to the gradient
    return plain + (-own.clamp(min=least).log().mean() - plain).detach()


@dataclasses.dataclass(frozen=True)
class PolynomialSchedule:
    """The learning rate after k steps: linear in the warm-up, then (1 - done)^power of the base.

    Before the first step it is the full base, with a warm-up too, as in the original.  Defaults: MSID's own training.
    """

    base: float = 0.01
    total: int = 1_364_670
    warmup: int = 0
    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.total:
            raise UsageError(
                f"a warm-up of {self.warmup} in {self.total} steps", remedy="give a warm-up that is shorter"
            )

    def __call__(self, step: int) -> float:
        """The rate after so many steps."""
        if step == 0:
            return self.base
        if step <= self.warmup:
            return self.base * step / self.warmup
        done = min(step - self.warmup, self.total - self.warmup) / (self.total - self.warmup)
        return float(self.base * (1 - done) ** self.power)
