"""An annotated picture drawn for the eye: boxes, landmarks, regions, head pose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .annotation import labels
from .face import Face
from .image import Picture

_SHIFT = 4  # OpenCV draws with 4 fractional bits
_READABLE = 300  # px; width of a face on which 478 points can be told apart
_LARGEST = 4096  # px; enlarged pictures stay below
_WHITE, _BLACK = (255, 255, 255), (20, 20, 20)
_AXES = ((230, 60, 60), (60, 200, 90), (70, 120, 255))


def draw_overlay(picture: Picture, faces: Sequence[Face]) -> Picture:
    """A copy of the picture with every face's regions, mesh points, box, score and pose drawn on it.

    Pictures with small faces are enlarged up to three times, so that the points can be told apart.
    """
    scale = _enlargement(picture, faces)
    height, width = picture.shape[0] * scale, picture.shape[1] * scale
    canvas = picture.copy()
    if scale > 1:
        canvas = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    for face in faces:
        _blend_regions(canvas, face)
    for number, face in enumerate(faces, start=1):
        drawing = _Drawing(canvas, face, scale)
        drawing.points()
        drawing.pose()
        drawing.box(number)
    return np.asarray(canvas, np.uint8)


def draw_regions(faces: Sequence[Face], image_size: tuple[int, int]) -> Picture:
    """(height, width, 3) picture of the ten-class labels of all faces, in the palette of Dense-Face's data."""
    width, height = image_size
    merged = np.zeros((height, width), np.uint8)
    for face in reversed(faces):  # the best face lies on top
        own = face.region_labels()
        merged[own > 0] = own[own > 0]
    return labels.to_colours(merged)


def _enlargement(picture: Picture, faces: Sequence[Face]) -> int:
    smallest = min((float(face.box[2] - face.box[0]) for face in faces), default=math.inf)
    room = _LARGEST // max(picture.shape[:2])
    return int(np.clip(round(_READABLE / smallest), 1, max(1, min(3, room))))


def _blend_regions(canvas: Picture, face: Face) -> None:
    own = face.region_labels((canvas.shape[1], canvas.shape[0]))
    shown = own > 0
    canvas[shown] = (0.68 * canvas[shown] + 0.32 * labels.to_colours(own)[shown]).astype(np.uint8)


class _Drawing:
    """One face on an enlarged canvas; lines and letters grow with the face."""

    def __init__(self, canvas: Picture, face: Face, scale: int) -> None:
        self.canvas, self.face = canvas, face
        self.low, self.high = face.box[:2] * scale, face.box[2:] * scale
        self.landmarks = face.landmarks[:, :2] * scale
        self.nose = face.five_points[2] * scale
        self.width = float(self.high[0] - self.low[0])
        self.line = max(1, round(self.width / 200))

    def points(self) -> None:
        radius = max(8, round(self.width / 260 * (1 << _SHIFT)))
        for point in self.landmarks:
            cv2.circle(self.canvas, _fixed(point), radius, _WHITE, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def pose(self) -> None:
        """The head's axes from the nose tip: x red, y green down, z blue out of the face."""
        rotation = self.face.transform[:3, :3] / np.linalg.norm(self.face.transform[:3, 0])
        for axis, colour in enumerate(_AXES):
            direction = rotation[:2, axis] * ((-1, 1) if axis == 1 else (1, -1))  # camera y is up, picture y down
            tip = self.nose + 0.5 * self.width * direction
            cv2.line(self.canvas, _fixed(self.nose), _fixed(tip), colour, 2 * self.line, cv2.LINE_AA, _SHIFT)

    def box(self, number: int) -> None:
        face, (height, width) = self.face, self.canvas.shape[:2]
        cv2.rectangle(self.canvas, _fixed(self.low), _fixed(self.high), _WHITE, self.line, cv2.LINE_AA, _SHIFT)
        angles = "  ".join(f"{name} {getattr(face.pose, f'{name}_deg'):+.0f}" for name in ("yaw", "pitch", "roll"))
        text, font = f"{number}  {face.score:.2f}  {angles}", cv2.FONT_HERSHEY_SIMPLEX
        scale = max(0.4, self.width / 700)
        (across, up), below = cv2.getTextSize(text, font, scale, 1)
        tall = up + below + 6
        x = int(np.clip(self.low[0], 0, max(0, width - across - 6)))
        y = int(self.low[1]) - tall
        if y < 0:  # no room above: below the box, or at the picture's lower edge
            y = int(min(self.high[1], height - tall))
        cv2.rectangle(self.canvas, (x, y), (x + across + 6, y + tall), _WHITE, cv2.FILLED)
        cv2.putText(self.canvas, text, (x + 3, y + up + 3), font, scale, _BLACK, 1, cv2.LINE_AA)


def _fixed(point: npt.NDArray[np.floating[Any]]) -> tuple[int, int]:
    x, y = np.rint(point * (1 << _SHIFT)).astype(int).tolist()
    return x, y
