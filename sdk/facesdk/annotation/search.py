"""Where the detector looks: the whole picture first, then what it is known to miss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from .region import Region, letterbox


@dataclasses.dataclass(frozen=True)
class Pass:
    """Views to run one detector over; a face found in any of them ends the search after this pass."""

    name: str
    detector: str
    views: tuple[Region, ...]


#: the smallest face, as a share of its view, that a detector finds reliably: of seven photos shown at falling sizes
#: all scored 0.5 or more down to this share (benchmarks/detection.py)
RELIABLE_SHARE = {"detector_short": 0.18, "detector_full": 0.1}
#: overlap of neighbouring tiles: a face up to this share of a tile is whole in at least one
OVERLAP = {"detector_short": 0.5, "detector_full": 0.25}


def passes(width: int, height: int, detectors: tuple[str, ...], smallest_px: float) -> Iterator[Pass]:
    """Passes in the order of their cost, the first one MediaPipe's own.

    whole     the letterboxed picture, short range: faces from about 1/6 of it.
    far       the same view with the full-range network, where the bundle has one: from about 1/10.
    close-up  the picture on a wider black margin: faces that fill or leave the frame.
    turned    views turned by 90, 270, 180 degrees: lying and upside-down heads.
    tiles     ever smaller overlapping squares, down to faces of `smallest_px`.
    """
    whole, far = letterbox(width, height), detectors[-1]
    yield Pass("whole", detectors[0], (whole,))
    if far != detectors[0]:
        yield Pass("far", far, (whole,))
    yield Pass("close-up", detectors[0], (whole.scaled(1.5), whole.scaled(2.0)))
    turned = tuple(dataclasses.replace(whole, angle=quarter * math.pi / 2) for quarter in (1, 3, 2))
    yield Pass("turned", detectors[0], turned)
    for side in tile_sides(max(width, height), far, smallest_px):
        yield Pass(f"tiles of {round(side)} px", far, tuple(tiles(width, height, side, OVERLAP[far])))


def tile_sides(longer_px: float, detector: str, smallest_px: float) -> Iterator[float]:
    """Sides of the tiles, falling: each finds the faces that are too small for the one before."""
    share, overlap = RELIABLE_SHARE[detector], OVERLAP[detector]
    found_px = share * longer_px
    while found_px > smallest_px:
        side = max(found_px / overlap, smallest_px / share)
        yield side
        found_px = share * side


def tiles(width: int, height: int, side: float, overlap: float) -> Iterator[Region]:
    """Squares of `side` px that cover the picture, neighbours overlapping by at least the share `overlap`."""
    for y in _centres(height, side, overlap):
        for x in _centres(width, side, overlap):
            yield Region(x, y, side, side)


def _centres(extent: float, side: float, overlap: float) -> list[float]:
    if extent <= side:
        return [extent / 2]
    count = math.ceil((extent - side) / (side * (1 - overlap))) + 1
    step = (extent - side) / (count - 1)
    return [side / 2 + step * i for i in range(count)]
