"""The crop that Deep3DFaceRecon was trained on: scaled and shifted so that the face fits, never rotated.

HifiFace feeds its own crop to that network instead; this one gives coefficients that can be read absolutely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image as Pillow

from ..errors import UsageError
from ..image import MAX_PIXELS, Picture

Array = npt.NDArray[np.floating[Any]]

CROP_PX = 224
#: pixels in the crop per unit of the standard points (Deep3DFaceRecon `rescale_factor`)
RESCALE_FACTOR = 102.0
#: image-left eye, image-right eye, nose, mouth corners: x right, y up, z towards the camera (similarity_Lm3D_all.mat)
STANDARD_POINTS = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.0032535, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.2484662, -0.38128236, 0.22235769],
    ]
)
#: rows of the 68 points whose mean is each of the five: eyes by their corners, nose tip, mouth corners
FIVE_OF_68 = ((36, 39), (42, 45), (30,), (48,), (54,))


@dataclasses.dataclass(frozen=True)
class Deep3DCrop:
    """A crop, and how it lies in the original.

    five_points_px  in pixels of the crop.
    scale           pixels of the crop per pixel of the original.
    translation_px  (2,) where the origin of the standard points falls in the original; y counted up from the last row.
    """

    picture: Picture
    five_points_px: npt.NDArray[np.float64]
    scale: float
    translation_px: npt.NDArray[np.float64]


def five_points(points_68: Array, rows_of_each: Sequence[Sequence[int]] = FIVE_OF_68) -> npt.NDArray[np.float64]:
    """(5, 2) points of the 68 that landmark networks in the iBUG order give."""
    if points_68.shape != (68, 2):
        raise UsageError(f"points of shape {points_68.shape}", remedy="give all 68 points, shape (68, 2)")
    return np.array([points_68[list(rows)].mean(0) for rows in rows_of_each], np.float64)


def fit_projection(points: Array, standard: Array = STANDARD_POINTS) -> tuple[float, npt.NDArray[np.float64]]:
    """Scale and (2,) translation of the scaled orthographic projection that takes (n, 3) points to (n, 2), y up.

    POS (DeMenthon and Davis 1995): least squares, the scale the mean length of both rows of the matrix.
    Raises UsageError where the points do not determine it.
    """
    homogeneous = np.column_stack([standard, np.ones(len(standard))])
    if points.shape != (len(standard), 2) or not np.isfinite(points).all():
        raise UsageError(f"points of shape {points.shape}", remedy=f"give {len(standard)} finite points (x, y)")
    solution = np.linalg.lstsq(homogeneous, points.astype(np.float64), rcond=None)[0]
    scale = float(np.linalg.norm(solution[:3], axis=0).mean())
    if scale < 1e-6 * max(1.0, float(np.abs(points).max())):
        raise UsageError("all points coincide", remedy="give the five points of a face")
    return scale, solution[3]


def align(
    picture: Picture,
    five_points_px: Array,
    *,
    size: int = CROP_PX,
    rescale_factor: float = RESCALE_FACTOR,
    standard: Array = STANDARD_POINTS,
) -> Deep3DCrop:
    """The (size, size, 3) crop around five points given in pixels of the picture; black beyond it, bicubic.

    Raises UsageError for points that are no face, or one so small that the picture would have to grow too large.
    """
    height, width = picture.shape[:2]
    pixel_scale, translation = fit_projection(_flipped(five_points_px, height), standard)
    scale = rescale_factor / pixel_scale
    resized = np.array([int(width * scale), int(height * scale)])
    centre = np.array([translation[0] - width / 2, height / 2 - translation[1]])
    corner = (resized / 2 - size / 2 + centre * scale).astype(np.int64)
    points = (_flipped(five_points_px, height) - translation + [width / 2, height / 2]) * scale - (resized - size) / 2
    return Deep3DCrop(_cut(picture, resized, corner, size), _flipped(points, size), scale, translation)


def _flipped(points: Array, height: int) -> npt.NDArray[np.float64]:
    """The points with y counted from the other end of the picture."""
    return np.column_stack([points[:, 0], height - 1 - points[:, 1].astype(np.float64)])


def _cut(picture: Picture, resized: npt.NDArray[np.int64], corner: npt.NDArray[np.int64], size: int) -> Picture:
    """Square at `corner` of the picture brought to `resized` (width, height)."""
    width, height = resized.tolist()
    if not 0 < width * height <= MAX_PIXELS:
        raise UsageError(
            f"the face would need the picture at {width} x {height} pixels",
            cause=f"the crop shows it at a fixed size, and the limit is {MAX_PIXELS} pixels",
            remedy="cut the picture around the face first, and check the five points",
        )
    left, top = corner.tolist()
    whole = Pillow.fromarray(picture).resize((width, height), Pillow.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + size, top + size)))
