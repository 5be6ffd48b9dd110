"""One step of attribute optimisation: a vector's picture, what estimators see in it, and where the vector should go.

An estimator is a `Term`: anything differentiable that turns pictures into values and losses can be one.
Source: AttrOP in Vec2Face (arXiv 2409.02979), with sums in place of batch means, so that rows are independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .networks.sixdrepnet import euler_angles

# squared cosine below which `euler_angles` sees gimbal lock
_LOCKED = 1e-12
# float32 numbers in the widest vector register, of AVX-512
_LANES = 16


class Term(nn.Module):
    """Measures k attributes, `names`, of every picture, and how far each is from its target.

    `forward(image, reference, targets)` takes images (n, 3, H, W), RGB in [-1, 1], identity vectors (n, 512) and
    targets (n, k), and returns values and losses, both (n, k).  Its gradient must be finite wherever it is evaluated:
    a weight of 0 does not hide a NaN.
    """

    names: tuple[str, ...]


class AttributeStep(nn.Module):
    """Gradient of the weighted losses with respect to each vector, picture clipped to `limits`, values, losses.

    vector, reference (n, 512), `keep` and `masked` as `Generator` takes them, targets and weights (n, K) in the order
    of `names`.  A row's gradient is that of its own sum of weighted losses.
    """

    def __init__(self, generator: nn.Module, terms: Sequence[Term], limits: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        self.generator, self.terms, self.limits = generator, nn.ModuleList(terms), limits
        self.names = tuple(name for term in terms for name in term.names)
        self._columns = [len(term.names) for term in terms]

    def forward(
        self, vector: Tensor, reference: Tensor, keep: Tensor, masked: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        vector = vector.detach().requires_grad_()
        with torch.enable_grad():
            image = self.generator(vector, keep, masked).clamp(*self.limits)
            values, losses = self.measured(image, reference, targets)
            (gradient,) = torch.autograd.grad((weights * losses).sum(), vector)
        return gradient, image.detach(), values.detach(), losses.detach()

    def measured(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Values and losses (n, K) of pictures."""
        parts = targets.split(self._columns, 1)
        found = [term(image, reference, part) for term, part in zip(self.terms, parts, strict=True)]
        values, losses = (torch.cat(column, 1) for column in zip(*found, strict=True))
        return values, losses


def attribute_step(
    generator: nn.Module, terms: Sequence[Term], limits: tuple[float, float] = (-1.0, 1.0)
) -> AttributeStep:
    """The step of these networks, which are put in evaluation mode and frozen: only the vector has a gradient."""
    step = AttributeStep(generator, terms, limits).eval()
    step.requires_grad_(False)
    return step


class IdentityTerm(Term):
    """Cosine of the picture's recognition vector and the reference; loss 1 - cosine, whatever the target."""

    names = ("identity",)

    def __init__(self, network: nn.Module, eps: float = 1e-8) -> None:
        super().__init__()
        # eps: floor of the norms, that of torch's `cosine_similarity`
        self.network, self.eps = network, eps

    def forward(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        vector = self.network(image)
        norms = _norm(vector).clamp_min(self.eps) * _norm(reference).clamp_min(self.eps)
        cosine = (vector * reference).sum(1, keepdim=True) / norms
        return cosine, 1 - cosine


class QualityTerm(Term):
    """L2 norm of the picture's MagFace vector; loss: what is missing to the target."""

    names = ("quality",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        norm = _norm(self.network(image))
        return norm, torch.relu(targets - norm)


class PoseTerm(Term):
    """Head pose in degrees; loss: the distance in degrees, for yaw to either side.

    `network`: pictures -> rotation matrices (n, 3, 3), see `SixDRepNet`.  As Vec2Face does, it is given the 112 x 112
    picture as BGR in [0, 1], not what it was trained on.
    """

    names = ("yaw", "pitch", "roll")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        rotation = self.network((image.flip(1) + 1) / 2)
        # of every row a whole vector register: for what is left over, runtimes have another arctangent
        copies = angles(rotation[:, None].expand(-1, _LANES, -1, -1).flatten(0, 1)).unflatten(0, (-1, _LANES))
        pitch, yaw, roll = copies[:, 0].rad2deg().unbind(1)
        values = torch.stack((yaw, pitch, roll), 1)
        either_side = torch.stack((yaw.clamp(-90, 90).abs(), pitch, roll), 1)
        return values, (targets - either_side).abs()


def angles(rotation: Tensor) -> Tensor:
    """`euler_angles` of (n, 3, 3) rotations with a finite gradient everywhere: zero where an angle is undetermined."""
    columns = rotation[:, 0, 0] ** 2 + rotation[:, 1, 0] ** 2
    rows = rotation[:, 2, 1] ** 2 + rotation[:, 2, 2] ** 2
    locked = (torch.minimum(columns, rows) < _LOCKED)[:, None, None]
    # the derivatives below are 0 / 0 in lock, and a NaN would pass through the last `where`
    free = torch.where(locked, torch.eye(3, dtype=rotation.dtype, device=rotation.device), rotation)
    pitch = torch.atan2(free[:, 2, 1], free[:, 2, 2])
    yaw = torch.atan2(-free[:, 2, 0], torch.sqrt(free[:, 0, 0] ** 2 + free[:, 1, 0] ** 2))
    roll = torch.atan2(free[:, 1, 0], free[:, 0, 0])
    return torch.where(locked[:, 0], euler_angles(rotation.detach()), torch.stack((pitch, yaw, roll), 1))


def _norm(vectors: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return norm
