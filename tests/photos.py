"""Photos made of the one that the tests have: a group, a face over another, a head turned to the side."""

from __future__ import annotations

import cv2
import numpy as np

from facesdk.face import Face
from facesdk.image import Picture, read_image
from tests.bundles import DATA

#: of `group`: left, top, side, mirrored; in another order than from the left, and of five sizes
MEMBERS = ((550, 20, 400, False), (20, 200, 220, False), (1240, 250, 236, True), (260, 60, 264, True),
           (970, 150, 244, False))  # fmt: skip


def astronaut() -> Picture:
    return read_image(DATA / "astronaut.png")


def group() -> Picture:
    """(520, 1500, 3) five faces on grey; the largest is the third from the left."""
    head = astronaut()[0:300, 80:380]
    canvas = np.full((520, 1500, 3), (70, 90, 110), np.uint8)
    for x, y, side, mirrored in MEMBERS:
        member = cv2.resize(head, (side, side), interpolation=cv2.INTER_AREA)
        canvas[y : y + side, x : x + side] = member[:, ::-1] if mirrored else member
    return canvas


def overlapping() -> Picture:
    """(360, 632, 3) two faces whose crops reach far into each other, the smaller one in front."""
    behind = np.pad(astronaut()[:300], ((0, 60), (0, 120), (0, 0)), mode="edge")
    front = cv2.resize(astronaut()[20:260, 110:340][:, ::-1], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    height, width = front.shape[:2]
    behind[110 : 110 + height, 270 : 270 + width] = front
    return np.ascontiguousarray(behind)


def turned_aside(face: Face, yaw_deg: float) -> Picture:
    """The astronaut with the head's mesh turned about its vertical axis and drawn anew, far triangles first."""
    picture = astronaut()
    angle, points = np.radians(yaw_deg), face.landmarks.astype(np.float64)
    centre = points.mean(axis=0)
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    moved = (points - centre) @ about_y.T + centre
    canvas = np.full_like(picture, (120, 115, 110))
    depth = moved[face.triangles, 2].mean(axis=1)
    for triangle in face.triangles[np.argsort(-depth)]:
        source, place = points[triangle, :2].astype(np.float32), moved[triangle, :2].astype(np.float32)
        low, high = np.floor(place.min(axis=0)).astype(int), np.ceil(place.max(axis=0)).astype(int) + 1
        matrix = cv2.getAffineTransform(source, place - low.astype(np.float32))
        size = tuple(int(v) for v in high - low)
        piece = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        inside = np.zeros(size[::-1], np.uint8)
        cv2.fillConvexPoly(inside, np.rint(place - low).astype(np.int32), 1)
        part = canvas[low[1] : high[1], low[0] : high[0]]
        part[inside > 0] = piece[inside > 0]
    return canvas


def stranger() -> Picture:
    """The astronaut as another person to a network that looks at contrast: mirrored, other colours, lit from a side."""
    lit = astronaut()[:, ::-1, ::-1] * np.linspace(0.3, 1.2, 512)[:, None]
    return np.clip(lit, 0, 255).astype(np.uint8)
