"""Which faces of a picture are meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from ..face import Face


def choose_faces(faces: Sequence[Face], which: str) -> list[Face]:
    """The faces that `which` names: "all", "largest", a number from 1 in order from the left, or "X,Y" in pixels.

    A position means the face whose box holds it, else the nearest one.  Raises UsageError.
    """
    if which == "all":
        return list(faces)
    if which == "largest":
        return [max(faces, key=area)]
    if "," in which:
        return [_nearest(faces, *_position(which))]
    if not which.isdecimal() or not 1 <= int(which) <= len(faces):
        raise UsageError(
            f"faces is {which!r}, and the picture shows {len(faces)}",
            remedy=f"give all, largest, a number from 1 to {len(faces)} (from the left), or a position X,Y in pixels",
        )
    return [sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))[int(which) - 1]]


def area(face: Face) -> float:
    """Area of the face's box in pixels."""
    return float(np.prod(np.clip(face.box[2:] - face.box[:2], 0, None)))


def _position(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
        if np.isfinite([x, y]).all():
            return x, y
    except ValueError:
        pass
    raise UsageError(f"{text!r} is no position", remedy="write X,Y in pixels, as 320,180")


def _nearest(faces: Sequence[Face], x: float, y: float) -> Face:
    def distance(face: Face) -> tuple[bool, float]:
        x0, y0, x1, y1 = face.box.tolist()
        inside = x0 <= x <= x1 and y0 <= y <= y1
        return not inside, float(np.hypot((x0 + x1) / 2 - x, (y0 + y1) / 2 - y))

    return min(faces, key=distance)
