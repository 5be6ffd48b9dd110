"""Token masks: the random input of the generator beside the vector, and its published law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .seeds import Rng

#: the 7 x 7 map of the generator; token 0, the picture's own, stands before it
POSITIONS = 49


def _below(place: float) -> float:
    """The standard normal distribution function, exact in the lower tail."""
    return math.erfc(-place / math.sqrt(2)) / 2


@dataclasses.dataclass(frozen=True)
class MaskLaw:
    """Share of the positions that is hidden: a normal law cut to [minimum, maximum].  Defaults: Vec2Face's scripts."""

    minimum: float = 0.1
    maximum: float = 1.0
    mu: float = 0.15
    std: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum <= 1:
            raise UsageError(
                f"mask shares go from {self.minimum} to {self.maximum}", remedy="give 0 <= minimum <= maximum <= 1"
            )
        if not (math.isfinite(self.mu) and math.isfinite(self.std) and self.std > 0):
            raise UsageError(f"mask shares have mu {self.mu} and std {self.std}", remedy="give finite ones and std > 0")
        low, high, _ = self._standard()
        if self.minimum < self.maximum and _below(low) == _below(high):
            raise UsageError(
                f"the normal law of mu {self.mu} and std {self.std} never gives {self.minimum} to {self.maximum}",
                remedy="give a mu nearer to that range, or a larger std",
            )

    @property
    def dropped(self) -> int:
        """Positions that the encoder does not see, the same number for every draw."""
        return math.ceil(POSITIONS * self.minimum)

    def quantile(self, q: float) -> float:
        """The share that a part `q` (0..1) of all draws does not exceed."""
        if not 0 <= q <= 1:
            raise UsageError(f"the quantile asked for is {q}", remedy="give 0 to 1")
        low, high, mirrored = self._standard()
        probability = _below(low) + (1 - q if mirrored else q) * (_below(high) - _below(low))
        # rounded to 0 or 1, the place is an end of the range
        end = high if probability else low
        place = NormalDist().inv_cdf(probability) if 0 < probability < 1 else end
        rate = self.mu + self.std * (-place if mirrored else place)
        return min(max(rate, self.minimum), self.maximum)

    def rate(self, rng: Rng) -> float:
        """One share: the quantile of one uniform draw."""
        return self.quantile(float(rng.random()))

    def _standard(self) -> tuple[float, float, bool]:
        """The range in units of std, and whether it was mirrored: above mu, the law has no digits left beside 1."""
        low, high = (self.minimum - self.mu) / self.std, (self.maximum - self.mu) / self.std
        return (-high, -low, True) if low > 0 else (low, high, False)


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """One mask a row: `keep` int64 (n, K), tokens the encoder sees, ascending from 0; `masked` bool (n, 50)."""

    keep: npt.NDArray[np.int64]
    masked: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, rows: slice | Sequence[int] | npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Masks:
        return Masks(self.keep[rows], self.masked[rows])

    @staticmethod
    def stacked(masks: Sequence[Masks]) -> Masks:
        """All rows, in order; the masks must come of laws that drop equally many positions."""
        return Masks(np.concatenate([each.keep for each in masks]), np.concatenate([each.masked for each in masks]))


def token_masks(
    noise: npt.NDArray[np.floating], rates: float | npt.NDArray[np.floating], law: MaskLaw = MaskLaw()
) -> Masks:
    """Masks of (n, 49) uniform noise: positions of small noise are hidden, those of the smallest dropped too.

    rates: shares to hide, one for all rows or (n,).  Ties: the earlier position has the smaller noise.
    """
    noise = np.asarray(noise)
    if noise.ndim != 2 or noise.shape[1] != POSITIONS:
        raise UsageError(f"mask noise has shape {noise.shape}", remedy=f"give (n, {POSITIONS})")
    if np.ndim(rates) and np.shape(rates) != noise.shape[:1]:
        raise UsageError(f"{np.shape(rates)} mask shares for {len(noise)} rows", remedy="give one, or one for each row")
    hidden = np.ceil(POSITIONS * np.broadcast_to(np.asarray(rates, np.float64), noise.shape[:1]))
    if not ((law.dropped <= hidden) & (hidden <= POSITIONS)).all():
        raise UsageError(
            f"mask shares of {np.min(rates):g} to {np.max(rates):g}",
            cause=f"at least {law.dropped} of {POSITIONS} positions are hidden, as many as the encoder does not see",
            remedy=f"give {law.minimum:g} to 1",
        )
    ranks = np.argsort(np.argsort(noise, axis=1, kind="stable"), axis=1)
    masked, seen = np.zeros((len(noise), 1 + POSITIONS), bool), np.ones((len(noise), 1 + POSITIONS), bool)
    masked[:, 1:] = ranks < hidden[:, None]
    seen[:, 1:] = ranks >= law.dropped
    keep = np.nonzero(seen)[1].reshape(len(noise), 1 + POSITIONS - law.dropped)
    return Masks(keep.astype(np.int64), masked)


def drop_mask(masks: Masks) -> npt.NDArray[np.bool_]:
    """Tokens, bool (n, 50), that the encoder does not see."""
    dropped = np.ones(masks.masked.shape, bool)
    np.put_along_axis(dropped, masks.keep, False, axis=1)
    return dropped
