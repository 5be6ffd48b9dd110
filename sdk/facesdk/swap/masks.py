"""Masks of a crop, 1 = the face that changes: where a result is pasted, and how softly that ends."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ..annotation import labels
from ..errors import EngineInputError, UsageError
from ..face import Face
from .warp import Matrix, Pixels, transform

#: a network's mask counts from NOISE on and fully from CERTAIN: a result is composited by its own mask already, and
#: one applied twice would leave half of the old face where it says half
NOISE, CERTAIN = 0.02, 0.2
#: an occluder's edge is a sharp one; share of the crop's side
_OCCLUDER_FEATHER = 0.01
_FACE = labels.NAMES[1:]


def soft_erosion(
    mask: Pixels, *, kernel_size: int = 15, threshold: float = 0.6, iterations: int = 1
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """The mask worn down from its edge inwards, soft there, and (h, w) bool where it stayed whole.

    The mask is filtered `iterations` times by a cone, all but the last time only lowered by it; 1 from `threshold` on,
    the rest divided by its greatest value.   SimSwap's SoftErosion.
    """
    if kernel_size < 1 or kernel_size % 2 == 0 or iterations < 1:
        raise UsageError(
            f"kernel size {kernel_size}, {iterations} iterations", remedy="give an odd size and at least one iteration"
        )
    axis = np.arange(kernel_size) - kernel_size // 2
    distance = np.hypot(*np.meshgrid(axis, axis))
    cone = distance.max() - distance
    cone = cone / cone.sum() if kernel_size > 1 else np.ones((1, 1))
    worn = mask.astype(np.float32)
    for _ in range(iterations - 1):
        worn = np.minimum(worn, _filtered(worn, cone))
    worn = _filtered(worn, cone)
    whole = worn >= threshold
    soft = np.where(whole, 1, worn / (worn[~whole].max(initial=0) + 1e-7))
    return soft.astype(np.float32), whole


def box_mask(size: int, *, blur: float = 0.3, padding: tuple[float, float, float, float] = (0, 0, 0, 0)) -> Pixels:
    """(size, size): 1 but for a blurred border.

    blur  share of the half side.   padding  top, right, bottom, left in percent.   facefusion's box mask.
    """
    amount = int(size * 0.5 * blur)
    top, right, bottom, left = (max(amount // 2, 1, int(size * percent / 100)) for percent in padding)
    mask = np.zeros((size, size), np.float32)
    mask[top : size - bottom, left : size - right] = 1
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), amount * 0.25), np.float32) if amount else mask


def feather(mask: Pixels, radius_share: float) -> Pixels:
    """The mask, fading inwards from its edge, and from the crop's border, over a share of the crop's side.

    Nothing is added beyond a straight edge: half of a Gaussian whose middle lies on the edge.
    """
    if not 0 <= radius_share <= 0.5:
        raise UsageError(f"the feather is {radius_share} of the crop's side", remedy="give 0 to 0.5")
    radius = radius_share * max(mask.shape)
    if radius < 0.5:
        return mask
    margin = int(radius) + 2
    framed = np.pad(mask, margin)
    blurred = cv2.GaussianBlur(framed, (0, 0), radius / 2, borderType=cv2.BORDER_CONSTANT)
    inside = blurred[margin:-margin, margin:-margin]
    return np.asarray(np.minimum(np.clip(2 * inside - 1, 0, 1), mask), np.float32)


def region_mask(face: Face, matrix: Matrix, size: int, regions: Sequence[str] = _FACE) -> Pixels:
    """(size, size) 1 on the named regions (`labels.NAMES`) of the target face, drawn in the crop itself."""
    unknown = [name for name in regions if name not in labels.NAMES]
    if unknown:
        raise UsageError(f"no region is called {unknown[0]!r}", remedy=f"choose of: {', '.join(labels.NAMES)}")
    points = transform(matrix, face.landmarks[:, :2].astype(np.float64))
    drawn = labels.region_labels(points, size, size, face.triangles)
    return np.isin(drawn, [labels.NAMES.index(name) for name in regions]).astype(np.float32)


def combine(
    model_mask: Pixels | None,
    validity: Pixels,
    region_mask: Pixels | None = None,
    occluder_mask: Pixels | None = None,
    *,
    radius_share: float = 0.08,
) -> Pixels:
    """(size, size) weight of the paste: the product of all masks, fading to 0 at the crop's border.

    model_mask     the network's own, any range, negative = 0; None where it has none.
    validity       of `cut_crop`.  The picture's edge gets no fade: nothing beyond it is seen.
    occluder_mask  1 = something lies over the target's face.
    Raises EngineInputError for masks of other shapes, or that hold NaN.
    """
    named = {"model": model_mask, "region": region_mask, "occluder": occluder_mask}
    for name, mask in named.items():
        if mask is not None and (mask.shape != validity.shape or not np.isfinite(mask).all()):
            raise EngineInputError(
                f"the {name} mask is of shape {mask.shape}, or not finite, for a crop of {validity.shape}",
                remedy="give a finite mask of the crop's height and width",
            )
    weight = feather(np.ones_like(validity), radius_share)
    # one pixel more: interpolation at the picture's edge reads it
    weight = weight * cv2.dilate(validity, np.ones((3, 3), np.uint8))
    if model_mask is not None:
        weight = weight * _ramp(model_mask)
    if region_mask is not None:
        weight = weight * feather(np.clip(region_mask, 0, 1).astype(np.float32), radius_share)
    if occluder_mask is not None:
        free = 1 - np.clip(occluder_mask, 0, 1).astype(np.float32)
        weight = weight * _softened(free)
    weight[[0, -1]] = weight[:, [0, -1]] = 0
    return np.asarray(weight, np.float32)


def _ramp(mask: Pixels) -> Pixels:
    share = np.clip((mask - NOISE) / (CERTAIN - NOISE), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _softened(free: Pixels) -> Pixels:
    """Feathered where not occluded; the crop's border is no edge of an occluder."""
    margin = max(2, int(0.02 * len(free)))
    return feather(np.pad(free, margin, mode="edge"), _OCCLUDER_FEATHER)[margin:-margin, margin:-margin]


def _filtered(mask: Pixels, kernel: npt.NDArray[np.float64]) -> Pixels:
    return np.asarray(cv2.filter2D(mask, cv2.CV_32F, kernel, borderType=cv2.BORDER_CONSTANT), np.float32)
