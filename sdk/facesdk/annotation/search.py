"""Where the detector looks: the whole picture first, then what it is known to miss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from .region import Region, letterbox

_OVERLAP = 0.25  # of a tile: a face up to a quarter of a tile is whole in at least one


@dataclasses.dataclass(frozen=True)
class Pass:
    """Views to run one detector over; a face found in any of them ends the search after this pass."""

    name: str
    detector: str
    views: tuple[Region, ...]


def passes(width: int, height: int, detectors: tuple[str, ...], smallest_px: float) -> Iterator[Pass]:
    """Passes in the order of their cost, the first one MediaPipe's own.

    whole     the letterboxed picture, short range: faces from about 1/8 of it.
    far       the same view with the full-range network, where the bundle has one.
    close-up  the picture on a wider black margin: faces that fill or leave the frame.
    turned    views turned by 90, 270, 180 degrees: lying and upside-down heads.
    tiles     ever smaller overlapping squares, down to faces of `smallest_px`.
    """
    whole = letterbox(width, height)
    small = detectors[-1]
    yield Pass("whole", detectors[0], (whole,))
    if small != detectors[0]:
        yield Pass("far", small, (whole,))
    yield Pass("close-up", detectors[0], (whole.scaled(1.5), whole.scaled(2.0)))
    turned = tuple(dataclasses.replace(whole, angle=quarter * math.pi / 2) for quarter in (1, 3, 2))
    yield Pass("turned", detectors[0], turned)
    side = max(width, height) / 2
    while side * _FACE_SHARE >= smallest_px / 2:
        yield Pass(f"tiles of {round(side)} px", small, tuple(tiles(width, height, side)))
        side /= 2


#: the smallest face, as a share of its view, that the full-range network finds
_FACE_SHARE = 1 / 12


def tiles(width: int, height: int, side: float) -> Iterator[Region]:
    """Squares of `side` px that cover the picture, overlapping by at least a quarter."""
    for y in _centres(height, side):
        for x in _centres(width, side):
            yield Region(x, y, side, side)


def _centres(extent: float, side: float) -> list[float]:
    if extent <= side:
        return [extent / 2]
    count = math.ceil((extent - side) / (side * (1 - _OVERLAP))) + 1
    step = (extent - side) / (count - 1)
    return [side / 2 + step * i for i in range(count)]
