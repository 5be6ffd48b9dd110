"""Five-point alignment: the crop that ArcFace-like encoders and swappers were trained on."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..image import Picture
from .deep3d_alignment import five_points

#: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner in a 112 px crop (insightface)
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)
#: rows of the 68 points whose mean is each of the five: all points of an eye, nose tip, mouth corners (Face2Diffusion)
_ROWS_OF_68 = (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,))
Points = npt.NDArray[np.floating[Any]]


def arcface_template(size: int) -> npt.NDArray[np.float64]:
    """(5, 2) template of a crop whose size is a multiple of 112, else of 128 (the face 8/128 further right).

    As insightface has it.  Raises UsageError for other sizes.
    """
    if size > 0 and size % 112 == 0:
        return ARCFACE_112 * (size / 112)
    if size > 0 and size % 128 == 0:
        return ARCFACE_112 * (size / 128) + [8 * size / 128, 0]
    raise UsageError(f"crop size {size}", remedy="choose a multiple of 112 or of 128")


def five_of_68(points_68: Points) -> npt.NDArray[np.float64]:
    """(5, 2) points of the 68 that landmark networks in the iBUG order give; raises UsageError for other counts.

    Eyes are the means of their six points, as in Face2Diffusion, and not of their corners alone.
    """
    return five_points(points_68, _ROWS_OF_68)


def similarity(source: Points, target: Points) -> npt.NDArray[np.float64]:
    """(2, 3) least-squares rotation, uniform scale and shift from (n, 2) to (n, 2) points (Umeyama without reflection).

    In complex numbers: target = a source + t.
    """
    p, q = (points.astype(np.float64) @ [1, 1j] for points in (source, target))
    centred = p - p.mean()
    a = (np.conj(centred) @ (q - q.mean())) / (np.conj(centred) @ centred).real
    t = q.mean() - a * p.mean()
    return np.array([[a.real, -a.imag, t.real], [a.imag, a.real, t.imag]])


def align(
    picture: Picture, five_points_px: Points, size: int = 112, template: Points | None = None
) -> tuple[Picture, npt.NDArray[np.float64]]:
    """The (size, size, 3) aligned crop, bilinear, black beyond the picture, and the (2, 3) matrix picture -> crop.

    template  (5, 2) where the points come to lie in the crop; by default ArcFace's of that size.
    """
    matrix = similarity(five_points_px, arcface_template(size) if template is None else template)
    crop = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(crop, np.uint8), matrix
