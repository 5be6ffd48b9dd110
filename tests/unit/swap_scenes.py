"""Faces and matrices of the tests of crops and paste-back."""

from __future__ import annotations

import numpy as np

from facesdk.annotation import labels
from facesdk.annotation.geometry import HeadPose
from facesdk.annotation.region import Region
from facesdk.face import Face
from facesdk.swap.warp import similarity_matrix

RINGS = dict(labels.POLYGONS)
EYES, MOUTH = np.array([[-0.5, 0.0], [0.5, 0.0]]), np.array([[-0.35, 1.1], [0.35, 1.1]])


def face_at(turn: complex, centre: complex, size: tuple[int, int] = (640, 480)) -> Face:
    """A face whose eyes are `turn` apart and have `centre` between them."""
    points = np.zeros((468, 2))
    for name, eye in (("right_eye", EYES[0]), ("left_eye", EYES[1])):
        angle = np.linspace(0, 2 * np.pi, len(RINGS[name]), endpoint=False)
        points[RINGS[name]] = eye + 0.1 * np.column_stack([np.cos(angle), np.sin(angle)])
    points[[61, 291]] = MOUTH
    place = points @ [1, 1j] * turn + centre
    landmarks = np.column_stack([place.real, place.imag, np.zeros(468)]).astype(np.float32)
    five = np.vstack([EYES, [[0, 0.6]], MOUTH]) @ [1, 1j] * turn + centre
    return Face(
        box=np.zeros(4, np.float32), score=1, key_points=np.zeros((6, 2), np.float32), landmarks=landmarks, presence=1,
        five_points=np.column_stack([five.real, five.imag]).astype(np.float32), transform=np.eye(4, dtype=np.float32),
        pose=HeadPose(0, 0, 0), blendshapes=None, region=Region(0, 0, 1, 1), image_size=size,
        triangles=np.array([[0, 1, 2]]),
    )  # fmt: skip


def turned(degrees: float, length: float = 1.0) -> complex:
    return complex(length * np.exp(1j * np.radians(degrees)))


def around(turn: complex, place: complex, size: int) -> np.ndarray:
    """The matrix that puts `place` in the middle of a crop."""
    return similarity_matrix(turn, size / 2 * (1 + 1j) - turn * place)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((first.astype(np.float64) - second) ** 2), 1e-9)))
