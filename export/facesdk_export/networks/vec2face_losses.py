"""The losses and the learning rate that Vec2Face is trained with.

HaiyuWu/Vec2Face as of 2025-02 and after; the first release had all weights of pictures at 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facesdk.errors import UsageError

from .lpips import LPIPS

#: epoch from which the discriminator judges (the README's run; the program's default is 100)
DISC_START = 80
#: the batch that the base learning rate is meant for
_BASE_BATCH = 112


class LossWeights(NamedTuple):
    """Factors of the generator's terms, as published; `lpips_factor` is part of the perceptual term itself."""

    reconstruction: float = 1
    perceptual: float = 0.1
    ssim: float = 0.1
    token: float = 1
    feature: float = 1
    adversarial: float = 1


class GeneratorTerms(NamedTuple):
    """The unweighted terms of the generator's loss, each a number but `perceptual` (n,)."""

    reconstruction: Tensor
    perceptual: Tensor
    ssim: Tensor
    token: Tensor
    feature: Tensor
    adversarial: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """What the generator minimises."""
        return (
            weights.reconstruction * self.reconstruction
            + weights.perceptual * self.perceptual.mean()
            + weights.ssim * self.ssim
            + weights.token * self.token
            + weights.feature * self.feature
            + weights.adversarial * self.adversarial
        )


@dataclasses.dataclass(frozen=True)
class Ssim:
    """Constants of the structural similarity; defaults: Wang et al. 2004, as published."""

    window: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    data_range: float = 1.0

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean similarity, a number, of pictures (n, c, h, w), computed in float32 where the window fits wholly."""
        with torch.autocast(first.device.type, enabled=False):
            a, b = first.float(), second.float()
            mean_a, mean_b = self._blurred(a), self._blurred(b)
            variance_a = self._blurred(a * a) - mean_a**2
            variance_b = self._blurred(b * b) - mean_b**2
            covariance = self._blurred(a * b) - mean_a * mean_b
            c1, c2 = ((k * self.data_range) ** 2 for k in (self.k1, self.k2))
            light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            return (light * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean()

    def _blurred(self, x: Tensor) -> Tensor:
        place = torch.arange(self.window, dtype=x.dtype, device=x.device) - self.window // 2
        window = torch.exp(-(place**2) / (2 * self.sigma**2))
        window, channels = (window / window.sum()).expand(x.shape[1], 1, -1), x.shape[1]
        x = functional.conv2d(x, window[..., None], groups=channels)
        return functional.conv2d(x, window[..., None, :], groups=channels)


class GeneratorLoss(nn.Module):
    """The generator's terms.  Keep it in evaluation mode, its networks frozen: LPIPS has dropout.

    identity  the encoder of the vectors: pictures (n, 3, 112, 112) in [-1, 1] -> (n, 512).
    lpips     has the entries of lpips/vgg.pth and of torchvision's VGG16, as `LPIPS` names them.
    """

    def __init__(
        self,
        identity: nn.Module,
        *,
        lpips_factor: float = 2.0,
        lpips_floor: float = 1e-4,
        ssim: Ssim = Ssim(),
    ) -> None:
        super().__init__()
        self.identity, self.lpips = identity, LPIPS(lpips_floor, named_twice=False)
        self.lpips_factor, self.ssim = lpips_factor, ssim

    def forward(
        self,
        vector: Tensor,
        rows: Tensor,
        tokens: Tensor,
        picture: Tensor,
        truth: Tensor,
        scores: Tensor | None = None,
    ) -> GeneratorTerms:
        """Terms of one batch.

        rows, tokens    (n, 50, dim): `Generator.rows(vector)`, a constant here, and what `Generator.decode` made of it.
        picture, truth  (n, 3, h, w): generated, not clipped, and real in [-1, 1].
        scores          the discriminator's of the picture (`generator_scores`); None while it does not judge yet.
        """
        return GeneratorTerms(
            reconstruction=functional.mse_loss(picture, truth),
            perceptual=self.lpips_factor * self.lpips(picture, truth).flatten(),
            ssim=1 - self.ssim((picture + 1) / 2, (truth + 1) / 2),
            token=functional.mse_loss(tokens[:, 1:], rows[:, 1:].detach()),
            feature=(1 - functional.cosine_similarity(vector, self.identity(picture))).mean(),
            adversarial=picture.new_zeros(()) if scores is None else -scores.mean(),
        )


def generator_scores(discriminator: nn.Module, picture: Tensor, *, leak: bool = False) -> Tensor:
    """The discriminator's scores of a picture that the generator is to better.

    Their gradient reaches the picture alone.  With `leak` it reaches the discriminator's weights too and is added to
    its own, which pulls it towards the generated pictures: a slip of the original, kept for comparison.
    """
    if leak:
        scores: Tensor = discriminator(picture)
        return scores
    weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    fixed: Tensor = torch.func.functional_call(discriminator, weights, (picture,))
    return fixed


def discriminator_loss(real: Tensor, fake: Tensor, weight: float = 1.0) -> Tensor:
    """What the discriminator minimises (least squares), of its scores of real and of generated, detached pictures."""
    return weight * 0.5 * (((real - 1) ** 2).mean() + (fake**2).mean())


def adversarial_weight(epoch: int, start: int = DISC_START) -> float:
    """0 before the epoch from which the discriminator judges, then 1; of both adversarial losses."""
    return float(epoch >= start)


def learning_rate_of(base: float, batch: int) -> float:
    """The learning rate of a base rate for the batch over all devices and accumulated steps."""
    return base * batch / _BASE_BATCH


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The generator's learning rate over fractional epochs; the discriminator's stays at `lr`.

    Defaults: the README's run, base rate 4e-5 on 4 x 32 pictures.
    """

    lr: float = learning_rate_of(4e-5, 4 * 32)
    warmup_epochs: float = 5
    epochs: float = 100
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(
                f"a warm-up of {self.warmup_epochs} in {self.epochs} epochs", remedy="give a warm-up that is shorter"
            )

    def __call__(self, epoch: float) -> float:
        """The rate at a fractional epoch: linear from 0 in the warm-up, then half a cosine down to `min_lr`."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        part = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * part))
