"""An annotated picture drawn for the eye: boxes, landmarks, regions, head pose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .annotation import labels
from .face import Face
from .image import Picture

_SHIFT = 4  # OpenCV draws with 4 fractional bits
_BOX, _POINT, _TEXT = (255, 255, 255), (255, 255, 255), (20, 20, 20)
_AXES = ((230, 60, 60), (60, 200, 90), (70, 120, 255))


def draw_overlay(picture: Picture, faces: Sequence[Face]) -> Picture:
    """A copy of the picture with every face's regions, mesh points, box, score and pose drawn on it."""
    canvas = np.ascontiguousarray(picture)
    for face in faces:
        canvas = _blend_regions(canvas, face)
    for number, face in enumerate(faces, start=1):
        unit = max(1.0, float(face.box[2] - face.box[0]) / 160)  # line widths grow with the face
        _draw_points(canvas, face, unit)
        _draw_pose(canvas, face, unit)
        _draw_box(canvas, face, unit, f"{number}  {face.score:.2f}  yaw {face.pose.yaw_deg:+.0f}  pitch "
                  f"{face.pose.pitch_deg:+.0f}  roll {face.pose.roll_deg:+.0f}")  # fmt: skip
    return canvas


def draw_regions(faces: Sequence[Face], image_size: tuple[int, int]) -> Picture:
    """(height, width, 3) picture of the ten-class labels of all faces, in the palette of Dense-Face's data."""
    width, height = image_size
    merged = np.zeros((height, width), np.uint8)
    for face in reversed(faces):  # the best face lies on top
        own = face.region_labels()
        merged[own > 0] = own[own > 0]
    return labels.to_colours(merged)


def _blend_regions(picture: Picture, face: Face) -> Picture:
    own = face.region_labels()
    canvas: Picture = picture.copy()
    shown = own > 0
    canvas[shown] = (0.62 * picture[shown] + 0.38 * labels.to_colours(own)[shown]).astype(np.uint8)
    return canvas


def _draw_points(canvas: Picture, face: Face, unit: float) -> None:
    radius = max(1, round(0.5 * unit * (1 << _SHIFT)))
    for point in np.rint(face.landmarks[:, :2] * (1 << _SHIFT)).astype(int).tolist():
        cv2.circle(canvas, point, radius, _POINT, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _draw_box(canvas: Picture, face: Face, unit: float, text: str) -> None:
    low, high = (np.rint(corner * (1 << _SHIFT)).astype(int).tolist() for corner in (face.box[:2], face.box[2:]))
    cv2.rectangle(canvas, low, high, _BOX, max(1, round(unit)), cv2.LINE_AA, _SHIFT)
    height, width = canvas.shape[:2]
    scale = min(0.45 * unit, height / 480 + 0.1)
    (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = int(np.clip(face.box[0], 0, max(0, width - text_width - 6)))
    top = face.box[1] - text_height - below - 6
    y = int(top if top >= 0 else min(face.box[3], height - text_height - below - 6))
    cv2.rectangle(canvas, (x, y), (x + text_width + 6, y + text_height + below + 6), _BOX, cv2.FILLED)
    cv2.putText(canvas, text, (x + 3, y + text_height + 3), cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT, 1, cv2.LINE_AA)


def _draw_pose(canvas: Picture, face: Face, unit: float) -> None:
    """The head's axes from the nose tip: x red, y green down, z blue out of the face."""
    rotation = face.transform[:3, :3] / np.linalg.norm(face.transform[:3, 0])
    start = face.five_points[2]
    length = 0.45 * math.dist(face.box[:2], face.box[2:]) / math.sqrt(2)
    for axis, colour in zip((0, 1, 2), _AXES, strict=True):
        direction = rotation[:2, axis] * (1, -1) * (-1 if axis == 1 else 1)
        tip = start + length * direction
        ends = [np.rint(point * (1 << _SHIFT)).astype(int).tolist() for point in (start, tip)]
        cv2.line(canvas, ends[0], ends[1], colour, max(1, round(1.5 * unit)), cv2.LINE_AA, _SHIFT)
