"""Rotated regions of interest: cutting a patch out of a picture, and mapping points of the patch back."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..image import Picture

Points = npt.NDArray[np.floating[Any]]
_BLOCK = 64  # columns; MediaPipe's fixed-point warp accumulates positions in blocks of this width


@dataclasses.dataclass(frozen=True)
class Region:
    """A rotated rectangle in pixels of the picture; the angle, in radians, turns x towards y."""

    centre_x: float
    centre_y: float
    width: float
    height: float
    angle: float = 0.0

    def matrix(self) -> npt.NDArray[np.float64]:
        """(2, 3): unit square of the region -> pixels of the picture."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        a, b, d, e = c * self.width, -s * self.height, s * self.width, c * self.height
        return np.array([[a, b, self.centre_x - (a + b) / 2], [d, e, self.centre_y - (d + e) / 2]])

    def scaled(self, factor: float, *, square: bool = False) -> Region:
        """The region grown around its centre, its shorter side first raised to the longer one if `square`."""
        longer = max(self.width, self.height)
        width, height = (longer, longer) if square else (self.width, self.height)
        return dataclasses.replace(self, width=width * factor, height=height * factor)

    def to_image(self, points: Points) -> npt.NDArray[np.float64]:
        """(..., 2) points of the unit square -> pixels."""
        matrix = self.matrix()
        return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float64)


def letterbox(width: int, height: int) -> Region:
    """The smallest square around the whole picture, on its centre."""
    side = max(width, height)
    return Region(width / 2, height / 2, side, side)


def angle_between(start: Points, end: Points) -> float:
    """Angle in [-pi, pi) that turns +x to the direction start -> end."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    return angle - 2 * math.pi * math.floor((angle + math.pi) / (2 * math.pi))


def cut(picture: Picture, region: Region, size: int, *, zero_border: bool) -> Picture:
    """(size, size, 3) uint8 patch, bilinear; beyond the picture black, or its edge repeated.

    Patch pixel (u, v) lies at (u / size, v / size) of the region: corners map to corners, without half a pixel of
    shift.  Positions are rounded to 1/32 px, as MediaPipe does; handing over the rounded map, not the matrix, keeps
    every OpenCV version to it (version 5 interpolates in float, which moves the landmarks of hard faces).
    """
    if region.angle == 0:
        whole, fraction = _exact_map(region, size)
    else:
        picture, left, top = _crop_around(picture, region)
        whole, fraction = _turned_map(region, size, left, top)
    border = cv2.BORDER_CONSTANT if zero_border else cv2.BORDER_REPLICATE
    return np.asarray(cv2.remap(picture, whole, fraction, cv2.INTER_LINEAR, borderMode=border), np.uint8)


def _turned_map(region: Region, size: int, left: int, top: int) -> tuple[Any, Any]:
    """OpenCV's fixed-point map of a turned region, in float32 relative to (left, top): three times as fast as exact."""
    (a, b, c), (d, e, f) = region.matrix()
    step = np.arange(size) / size
    x = np.add.outer((b * step + (c - left)).astype(np.float32), (a * step).astype(np.float32))
    y = np.add.outer((e * step + (f - top)).astype(np.float32), (d * step).astype(np.float32))
    return cv2.convertMaps(x, y, cv2.CV_16SC2)


def _crop_around(picture: Picture, region: Region) -> tuple[Picture, int, int]:
    """The part of the picture under a region, with a margin of interpolation: small coordinates keep float32 exact."""
    height, width = picture.shape[:2]
    corners = region.to_image(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float64))
    left, top = (int(v) for v in np.clip(np.floor(corners.min(axis=0)) - 2, 0, [width - 1, height - 1]))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(axis=0)) + 3, [left + 1, top + 1], [width, height]))
    return picture[top:bottom, left:right], left, top


@functools.lru_cache(maxsize=16)  # frames of a video and photos of a camera share their letterbox
def _exact_map(region: Region, size: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """OpenCV's fixed-point map of an upright region, ties as in MediaPipe.

    Many samples of a letterboxed picture fall half-way between two positions.  There the rounding noise of
    MediaPipe's computation decides, so its order is kept: corners in float32, solve, invert, add up per block.
    """
    start, within = _columns(size)
    rows = np.arange(size)
    x, y, w = (
        ((m[0] * start + (m[1] * rows + m[2])[:, None])[:, :, None] + m[0] * within).reshape(size, -1)[:, :size]
        for m in _patch_to_image(region, size)
    )
    # far outside the picture any clipped position samples the border alike
    x, y = (np.clip(np.rint(position * (32 / w)), -(1 << 30), 1 << 30).astype(np.int32) for position in (x, y))
    whole = np.stack([np.clip(position >> 5, -32768, 32767) for position in (x, y)], axis=-1).astype(np.int16)
    return whole, ((y & 31) << 5 | (x & 31)).astype(np.uint16)


def _columns(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    blocks = -(-size // _BLOCK)
    return np.arange(blocks, dtype=np.float64) * _BLOCK, np.arange(min(size, _BLOCK), dtype=np.float64)


def _patch_to_image(region: Region, size: int) -> npt.NDArray[np.float64]:
    unit = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1]], np.float64)
    corners = (unit @ region.matrix().T).astype(np.float32)
    to_patch = cv2.getPerspectiveTransform(corners, (unit[:, :2] * size).astype(np.float32))
    return np.asarray(cv2.invert(to_patch)[1], np.float64)
