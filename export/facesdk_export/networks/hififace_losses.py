"""The losses that HifiFace is trained with: one pure function per term, and the weighted totals.

Weights and forms: maum-ai/hififace `model/loss.py`.  LPIPS reads pictures in [0, 1] as they are, although it was made
for [-1, 1]: upstream trained so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .face_model import FaceModel
from .hififace import IDENTITY_INPUT_PX, SHAPE_COEFFICIENTS, Swap, identity_input, unit
from .hififace_blocks import resized
from .lpips import LPIPS

#: pictures are resized to this before `f_3d`, as in Deep3DFaceRecon's training (the generator does not)
COEFFICIENT_INPUT_PX = 224


class LossWeights(NamedTuple):
    """Weights of the terms, as published."""

    shape: float = 0.5
    id: float = 5
    segmentation: float = 100
    reconstruction: float = 20
    cycle: float = 1
    lpips: float = 5
    adversarial: float = 1


class GeneratorTerms(NamedTuple):
    """The unweighted terms of the generator's loss, each a number."""

    shape: Tensor
    id: Tensor
    segmentation: Tensor
    reconstruction: Tensor
    cycle: Tensor
    lpips: Tensor
    adversarial: Tensor

    def identity_total(self, weights: LossWeights) -> Tensor:
        """The share of shape and identity ("sid")."""
        return weights.id * self.id + weights.shape * self.shape

    def realism_total(self, weights: LossWeights) -> Tensor:
        """The share of everything else."""
        return (
            weights.adversarial * self.adversarial
            + weights.segmentation * self.segmentation
            + weights.reconstruction * self.reconstruction
            + weights.cycle * self.cycle
            + weights.lpips * self.lpips
        )

    def total(self, weights: LossWeights) -> Tensor:
        return self.identity_total(weights) + self.realism_total(weights)


def quarter(picture: Tensor) -> Tensor:
    """The picture at a quarter of its size, bilinear without antialiasing."""
    return functional.interpolate(picture, scale_factor=0.25, mode="bilinear", align_corners=False)


def segmentation_loss(mask_target: Tensor, mask: Tensor, low_mask: Tensor) -> Tensor:
    """L1 of both masks against the target's face mask (n, 1, h, w) of 0 and 1."""
    return functional.l1_loss(low_mask, quarter(mask_target)) + functional.l1_loss(mask, mask_target)


def reconstruction_loss(picture: Tensor, low_picture: Tensor, target: Tensor, same: Tensor) -> Tensor:
    """L1 against the target where source and target are the same picture (`same` is 1), over the whole batch."""
    same = same[..., None, None]
    low = functional.l1_loss(low_picture * same, quarter(target) * same)
    return functional.l1_loss(picture * same, target * same) + low


def identity_loss(source: Tensor, *swapped: Tensor) -> Tensor:
    """Mean of |1 - cosine| between the source's unit identity (n, 512) and each other's, summed over these."""
    return torch.stack([(1 - (source * other).sum(1)).abs().mean() for other in swapped]).sum()


def shape_loss(model: FaceModel, source: Tensor, target: Tensor, *swapped: Tensor) -> Tensor:
    """Mean L1, in pixels, between the landmarks wished for and those of each swapped picture's coefficients, summed.

    Wished for: the source's identity with the target's expression, pose and place.
    """
    wished = torch.cat([source[:, :SHAPE_COEFFICIENTS], target[:, SHAPE_COEFFICIENTS:]], 1)
    points = model.landmarks(wished)
    return torch.stack([functional.l1_loss(points, model.landmarks(other)) for other in swapped]).sum()


def generator_hinge(scores: Sequence[Tensor]) -> Tensor:
    """-mean of the discriminator's scores of swapped pictures, averaged over its scales."""
    return torch.stack([-score.mean() for score in scores]).mean()


def discriminator_hinge(real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Losses on real and on swapped pictures, averaged over scales; their sum is what the discriminator minimises."""
    of_real = [functional.relu(1 - score).mean() for score in real]
    of_fake = [functional.relu(1 + score).mean() for score in fake]
    return torch.stack(of_real).mean(), torch.stack(of_fake).mean()


class RealismNetworks(nn.Module):
    """Holds LPIPS where the checkpoint has it."""

    def __init__(self) -> None:
        super().__init__()
        self.loss_fn_vgg = LPIPS()


class GeneratorLoss(nn.Module):
    """The generator's terms; parameters are `g_loss.{f_3d,f_id,realism_loss.loss_fn_vgg}` of the checkpoint.

    Keep it in evaluation mode: the networks are frozen, and LPIPS has dropout.
    """

    def __init__(
        self,
        f_3d: nn.Module,
        f_id: nn.Module,
        face_model: FaceModel,
        coefficient_px: int = COEFFICIENT_INPUT_PX,
        identity_px: int = IDENTITY_INPUT_PX,
    ) -> None:
        super().__init__()
        self.coefficient_px, self.identity_px = coefficient_px, identity_px
        self.f_3d, self.f_id, self.face_model = f_3d, f_id, face_model
        self.realism_loss = RealismNetworks()

    def coefficients(self, picture: Tensor) -> Tensor:
        """(n, 257) of a picture in [0, 1] of any size."""
        out: Tensor = self.f_3d(resized(picture, self.coefficient_px))
        return out

    def identity(self, picture: Tensor) -> Tensor:
        """(n, 512) of unit length."""
        return unit(self.f_id(identity_input(picture, size=self.identity_px)))

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        swap: Swap,
        cycle: Tensor,
        mask_target: Tensor,
        same: Tensor,
        scores: Sequence[Tensor],
    ) -> GeneratorTerms:
        """Pictures (n, 3, h, w) in [0, 1], `cycle` = swap of the swap back, `same` (n, 1), `scores` of the swap."""
        swapped = swap.picture, swap.low_picture
        shapes = [self.coefficients(picture) for picture in (source, target, *swapped)]
        identities = [self.identity(picture) for picture in (source, *swapped)]
        where = same[..., None, None]
        return GeneratorTerms(
            shape=shape_loss(self.face_model, *shapes),
            id=identity_loss(*identities),
            segmentation=segmentation_loss(mask_target, swap.mask, swap.low_mask),
            reconstruction=reconstruction_loss(*swapped, target, same),
            cycle=functional.l1_loss(target, cycle),
            lpips=self.realism_loss.loss_fn_vgg(target * where, swap.picture * where).mean(),
            adversarial=generator_hinge(scores),
        )
