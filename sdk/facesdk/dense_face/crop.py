"""The StyleGAN (FFHQ) crop that Dense-Face's images are, and what was measured in the photo, seen from the crop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..annotation import labels
from ..annotation.geometry import HeadPose
from ..errors import NoFaceFound, UsageError
from ..face import Face
from ..image import Picture, check_picture

Points = npt.NDArray[np.floating[Any]]

#: the side of a crop is a multiple of GRID, at most MOST of them (Dense-Face's annotation notebook)
GRID, MOST = 128, 8
_RINGS = dict(labels.POLYGONS)
_MOUTH_CORNERS = [61, 291]


def crop(picture: Picture, face: Face, *, padding: float = 0.0) -> tuple[Picture, npt.NDArray[np.float64]]:
    """The (size, size, 3) upright crop, black beyond the picture, and the (3, 3) matrix picture -> crop pixels.

    padding  share by which the crop is wider and higher than the rule, 0 as in the published data.
    size = 128 * floor(side / 128), at most 1024; corner pixels lie on the corners of the square, as the notebook warps.
    Raises NoFaceFound (reason too-small) for a side below 128 px, UsageError for a face of a picture of other size.
    """
    check_picture(picture)
    if face.image_size != (picture.shape[1], picture.shape[0]):
        found, given = (f"{width} x {height}" for width, height in (face.image_size, picture.shape[1::-1]))
        raise UsageError(
            f"the face was found in a picture of {found}, this one is {given}",
            remedy="give the picture that was annotated, or annotate this one",
        )
    corner, across = stylegan_square(face.landmarks, padding)
    # the notebook adds up the components of the side, which shrinks the crop of a leaning head: its length is meant
    size = _crop_size(abs(across))
    a = (size - 1) / across
    t = -a * corner
    matrix = np.array([[a.real, -a.imag, t.real], [a.imag, a.real, t.imag], [0, 0, 1]])
    cut = cv2.warpPerspective(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(cut, np.uint8), matrix


def crop_landmarks(landmarks_px: Points, matrix: Points, size: int) -> npt.NDArray[np.float64]:
    """(n, 3) fractions of the crop's side, from (n, 3) pixels of the picture; z is scaled as x and y are."""
    points = landmarks_px.astype(np.float64)
    homogeneous = np.column_stack([points[:, :2], np.ones(len(points))]) @ matrix.T
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    return np.column_stack([homogeneous[:, :2] / homogeneous[:, 2:], points[:, 2] * scale]) / size


def crop_pose(pose: HeadPose, matrix: Points) -> HeadPose:
    """The pose in the crop: turning a picture in its plane changes roll alone (R = Rz Ry Rx)."""
    turn = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
    return dataclasses.replace(pose, roll_deg=(pose.roll_deg + turn + 180) % 360 - 180)


def stylegan_square(landmarks_px: Points, padding: float) -> tuple[complex, complex]:
    """Top left corner and upper side, as x + iy, of the square that StyleGAN's rule puts around eyes and mouth.

    StyleGAN takes the means of 68-point landmarks; the mesh's eye rings and mouth corners stand in for them.
    """
    if not 0 <= padding < math.inf:
        raise UsageError(f"padding is {padding}", remedy="give 0 or more; 0.25 adds a quarter to each side")
    points = landmarks_px[:, :2].astype(np.float64) @ [1, 1j]
    # "right" is the subject's: on the left of the picture
    left, right = (points[_RINGS[eye]].mean() for eye in ("right_eye", "left_eye"))
    eyes, eye_to_eye = (left + right) / 2, right - left
    eye_to_mouth = points[_MOUTH_CORNERS].mean() - eyes
    direction = eye_to_eye - 1j * eye_to_mouth
    half = max(2.0 * abs(eye_to_eye), 1.8 * abs(eye_to_mouth)) * (1 + padding)
    half_across = direction / max(abs(direction), 1e-12) * half
    # the notebook pads the width alone, which squeezes the face; both sides are padded here
    return complex(eyes + 0.1 * eye_to_mouth - half_across * (1 + 1j)), complex(2 * half_across)


def _crop_size(side: float) -> int:
    if not side >= GRID:
        raise NoFaceFound(
            f"the face's crop is {side:.0f} px wide, less than {GRID}",
            reason="too-small",
            remedy=f"take a larger photo: eyes at least {GRID // 4} px apart are enough",
        )
    return GRID * min(int(side / GRID), MOST)
