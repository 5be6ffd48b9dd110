"""Facial transform and head pose: the metric canonical face fitted to screen landmarks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

VERTICAL_FOV_DEG, NEAR = 63.0, 1.0  # MediaPipe's face geometry environment
FACE_POINTS = 468  # the iris points behind them have no canonical position


@dataclasses.dataclass(frozen=True)
class CanonicalFace:
    """The landmarks that carry weight in the fit: index (n,), position (n, 3) in cm, weight (n,)."""

    index: npt.NDArray[np.int64]
    position: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class HeadPose:
    """Angles in degrees, R = Rz(roll) Ry(yaw) Rx(pitch), signs as 6DRepNet has them.

    yaw > 0 looks to the picture's left, pitch > 0 up, roll > 0 leans clockwise.
    approximate: from the facial transform, not from a pose network; expect some degrees of difference to 6DRepNet,
    most in pitch.
    """

    pitch_deg: float
    yaw_deg: float
    roll_deg: float
    approximate: bool = True


def weighted_similarity(source: Array, target: Array, weight: Array) -> npt.NDArray[np.float64]:
    """(4, 4) similarity that minimises sum(w |s R source + t - target|^2), without reflection.

    source, target (n, 3), weight (n,).  Weighted orthogonal Procrustes.
    """
    total = weight.sum()
    centred = source - weight @ source / total
    u, _, vt = np.linalg.svd((target * weight[:, None]).T @ centred)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        u[:, 2] *= -1
    rotation = u @ vt
    weighted = weight[:, None] * centred
    scale = ((weighted @ rotation.T) * target).sum() / (weighted * source).sum()
    matrix = np.eye(4)
    matrix[:3, :3] = scale * rotation
    matrix[:3, 3] = weight @ (target - source @ matrix[:3, :3].T) / total
    return matrix


def facial_transform(landmarks_px: Array, width: int, height: int, face: CanonicalFace) -> npt.NDArray[np.float64]:
    """(4, 4) canonical face -> camera, in cm: camera at the origin, y up, looking along -z.

    landmarks_px (>= 468, 3): x, y and z in pixels.  The scale of the fit is found twice, first without perspective;
    the rotation is not corrected for faces off the centre (a weakness of MediaPipe's, kept).
    """
    # the screen plane has height 2 tan(fov / 2), so one factor turns pixels into its units
    unit = 2 * NEAR * math.tan(math.radians(VERTICAL_FOV_DEG) / 2) / height
    depth = landmarks_px[:FACE_POINTS, 2].mean(dtype=np.float64) * unit
    screen = (landmarks_px[face.index].astype(np.float64) - [width / 2, height / 2, 0]) * [unit, -unit, unit]

    def unproject(scale: float) -> npt.NDArray[np.float64]:
        z = (screen[:, 2:] - depth + NEAR) / scale
        return np.hstack([screen[:, :2] * z / NEAR, -z])

    def fit(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return weighted_similarity(face.position, points, face.weight)

    first = _scale(fit(screen * [1, 1, -1]))
    second = _scale(fit(unproject(first)))
    return fit(unproject(first * second))


def head_pose(transform: Array) -> HeadPose:
    """Approximate head pose of a facial transform, with the signs of 6DRepNet (its own frame has y down)."""
    pitch, yaw, roll = euler_degrees(transform[:3, :3].T / _scale(transform))
    return HeadPose(pitch, yaw, roll)


def euler_degrees(rotation: Array) -> tuple[float, float, float]:
    """(pitch, yaw, roll) of a rotation matrix; roll is 0 in the singular case (looking straight up or down)."""
    r = rotation
    level = math.hypot(r[0, 0], r[1, 0])
    yaw = math.atan2(-r[2, 0], level)
    if level < 1e-6:
        pitch, roll = math.atan2(-r[1, 2], r[1, 1]), 0.0
    else:
        pitch, roll = math.atan2(r[2, 1], r[2, 2]), math.atan2(r[1, 0], r[0, 0])
    return math.degrees(pitch), math.degrees(yaw), math.degrees(roll)


def _scale(matrix: Array) -> float:
    return float(np.linalg.norm(matrix[:3, 0]))
