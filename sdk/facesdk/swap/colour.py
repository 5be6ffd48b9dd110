"""Colour match: the statistics of one crop's CIELAB tones given to another, inside a mask."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .warp import Pixels

#: contrast is changed by this factor at most: a flat result is not blown up to noise
MOST_CONTRAST = 1.5
_LEAST_PIXELS = 16
#: statistics keep this share of the crop's side away from the mask's edge, where one crop has hair and the other skin
_RIM = 0.03
#: L* below which chroma counts absolutely, not as a share of L*
_DARK = 20.0


def match_colour(
    crop: Pixels, reference: Pixels, mask: Pixels, strength: float = 1.0, share: Pixels | None = None
) -> Pixels:
    """The (h, w, 3) crop in 0..1 with the mean and the deviation that the tones of `reference` have inside the mask.

    mask (h, w): 0..1; statistics are those of its inner part.  Nothing changes where that is empty.
    share (h, w): how much of each pixel is changed, the mask by default: the mask by which the crop was composited.
    strength  0 returns the crop as it is.   Reinhard et al. 2001, on `tones` in place of l-alpha-beta.
    """
    if crop.shape != reference.shape or crop.shape[:2] != mask.shape or crop.shape[2:] != (3,):
        raise UsageError(
            f"crop {crop.shape}, reference {reference.shape} and mask {mask.shape} do not fit",
            remedy="give two (h, w, 3) crops and an (h, w) mask",
        )
    if not 0 <= strength <= 1:
        raise UsageError(f"the colour match's strength is {strength}", remedy="give 0 to 1")
    inner = _inner(mask)
    if strength == 0 or np.count_nonzero(inner) < _LEAST_PIXELS:
        return crop
    own = tones(crop)
    (mean, deviation), (wanted, spread) = statistics(own, inner), statistics(tones(reference), inner)
    contrast = np.clip(spread / np.maximum(deviation, 1e-4), 1 / MOST_CONTRAST, MOST_CONTRAST)
    change = _rgb((own - mean) * contrast + wanted) - _rgb(own)
    return np.asarray(crop + change * (strength * (mask if share is None else share))[..., None], np.float32)


def tones(crop: Pixels) -> Pixels:
    """(h, w, 3) L*, a* / L*, b* / L* (D65, sRGB).

    A cast is rather a factor than a sum: matched in a* and b* themselves, a skin's warmth turns its dark hair blue.
    """
    lab = np.asarray(cv2.cvtColor(np.clip(crop, 0, 1).astype(np.float32), cv2.COLOR_RGB2LAB), np.float32)
    lab[..., 1:] /= np.maximum(lab[..., :1], _DARK)
    return lab


def _rgb(toned: npt.NDArray[Any]) -> Pixels:
    lab = toned.astype(np.float32)
    lab[..., 1:] *= np.maximum(lab[..., :1], _DARK)
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.float32)


def _inner(mask: Pixels) -> Pixels:
    """The mask without its rim; whole where it is all rim."""
    reach = 2 * round(_RIM * max(mask.shape)) + 1
    worn = cv2.erode(mask, np.ones((reach, reach), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(np.where(worn > 0.9, mask, 0) if (worn > 0.9).any() else mask, np.float32)


def statistics(values: Pixels, weight: Pixels) -> tuple[Pixels, Pixels]:
    """Weighted mean and standard deviation (channels,) of (h, w, channels) values."""
    share = weight.astype(np.float64) / weight.sum(dtype=np.float64)
    mean = np.einsum("hwc,hw->c", values, share)
    deviation = np.sqrt(np.einsum("hwc,hw->c", (values - mean) ** 2, share))
    return mean.astype(np.float32), deviation.astype(np.float32)
