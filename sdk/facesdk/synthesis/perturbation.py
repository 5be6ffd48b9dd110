"""Several vectors of one identity: noise is added, the length stays."""

from __future__ import annotations

import dataclasses
import math
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .seeds import Rng

Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Noise in groups: `shares` of the rows, which add up to 1, get noise of these `sigmas`.

    Groups lie one after another, or anywhere where `shuffle` is set.
    """

    sigmas: tuple[float, ...]
    shares: tuple[float, ...]
    shuffle: bool

    def __post_init__(self) -> None:
        if not self.sigmas or len(self.sigmas) != len(self.shares):
            raise UsageError(
                f"{len(self.sigmas)} sigmas and {len(self.shares)} shares",
                remedy="give each sigma its share of rows",
            )
        if not all(0 <= sigma < math.inf for sigma in self.sigmas):
            raise UsageError(f"the sigmas are {self.sigmas}", remedy="give finite numbers of 0 or more")
        if not (all(0 <= share <= 1 for share in self.shares) and math.isclose(sum(self.shares), 1)):
            raise UsageError(f"the shares are {self.shares}", remedy="give shares of 0 or more that add up to 1")

    def counts(self, rows: int) -> tuple[int, ...]:
        """Rows of each group; what rounding down leaves over belongs to the last."""
        first = [int(rows * share) for share in self.shares[:-1]]
        return (*first, rows - sum(first))


#: Vec2Face's scripts: image_generation, pose_image_generation, image_generation_with_reference
PRESETS = MappingProxyType({
    "image": Perturbation((0.3, 0.5, 0.7), (0.4, 0.4, 0.2), shuffle=True),
    "pose": Perturbation((0.7,), (1.0,), shuffle=False),
    "reference": Perturbation((0.2,), (1.0,), shuffle=True),
    "none": Perturbation((0.0,), (1.0,), shuffle=False),
})  # fmt: skip


def perturb(rows: npt.NDArray[np.floating], how: Perturbation, rng: Rng) -> Floats:
    """(m, d) float32: the rows with noise, each as long (L2) as it was.

    A RandomState draws as the published scripts do from numpy's global generator.
    """
    base = np.asarray(rows, np.float64)
    groups = zip(how.sigmas, how.counts(len(base)), strict=True)
    noise = np.concatenate([rng.normal(0, sigma, (count, base.shape[1])) for sigma, count in groups])
    if how.shuffle:
        rng.shuffle(noise)
    noise += base
    before, after = (np.linalg.norm(each, axis=1, keepdims=True) for each in (base, noise))
    noise *= before / np.where(after > 0, after, 1)
    return noise.astype(np.float32)
