"""Warps between a picture and a crop, with one convention for both ways.

Positions are continuous: (0, 0) is the corner of the picture, pixel i covers i to i + 1, its centre lies at i + 0.5.
A matrix (2, 3) takes positions to positions.  `Face` measures so too.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..image import MAX_PIXELS

Matrix = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.float32]
Border = Literal["reflect", "zero"]
_BORDERS = {"reflect": cv2.BORDER_REFLECT_101, "zero": cv2.BORDER_CONSTANT}
# sigma of the Gaussian ahead of shrinking, over sqrt(step^2 - 1).  Linear: the deviation of a box, 1 / sqrt(12).
# Cubic: the sharpened Gaussian nearest to Pillow's Lanczos (41 to 44 dB for 0.25 to 0.65, a plain one 37 to 42 dB)
_CUBIC_BLUR, _LINEAR_BLUR = 0.45, 0.29


def similarity_matrix(turn: complex, shift: complex) -> Matrix:
    """(2, 3) of z -> turn * z + shift, with z = x + iy."""
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def inverse(matrix: npt.NDArray[Any]) -> Matrix:
    """(2, 3) of the way back.  Raises UsageError for a matrix that has none."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all() or not 1e-12 < abs(scale(matrix)) < 1e12:
        raise UsageError(
            f"the matrix {matrix.tolist()} cannot be inverted",
            remedy="give a finite (2, 3) matrix, as crop_matrix does",
        )
    turn = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turn, -turn @ matrix[:, 2]])


def scale(matrix: Matrix) -> float:
    """By how much a matrix enlarges lengths."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def transform(matrix: Matrix, points: npt.NDArray[Any]) -> Matrix:
    """(n, 2) positions taken through a matrix."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float64)


def pixel_matrix(matrix: Matrix) -> Matrix:
    """The same map where pixel centres are whole numbers, as OpenCV and published templates count them."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + 0.5 * matrix[:, :2].sum(axis=1) - 0.5])


def warp(
    source: npt.NDArray[Any],
    matrix: Matrix,
    size: tuple[int, int],
    *,
    border: Border = "reflect",
    cubic: bool = True,
    antialias: bool = True,
) -> Pixels:
    """(height, width[, channels <= 4]) float32: the source seen through source -> result `matrix`, `size` (w, h).

    cubic      or bilinear, for masks: cubic overshoots.
    antialias  a Gaussian widens the footprint of a source pixel to that of a result's where the warp shrinks.
    Reads and copies only the part of the source under the result.
    """
    back = inverse(matrix)
    step = scale(back) if antialias else 1.0
    reduction = max(1, int(step / 2))
    window = _window(back, size, step, reduction)
    back[:, 2] -= window[:2]
    piece = _cut(source, window, border)
    if reduction > 1:  # a Gaussian of many pixels is slow; means of whole blocks go ahead of it
        piece = cv2.resize(piece, None, fx=1 / reduction, fy=1 / reduction, interpolation=cv2.INTER_AREA)
        back, step = back / reduction, step / reduction
    piece = piece.astype(np.float32, copy=False)
    if step > 1.01:
        piece = _smoothed(piece, math.sqrt(step**2 - 1), cubic)
    flags = (cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(piece, pixel_matrix(back), size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.float32)


def _smoothed(piece: Pixels, blur: float, sharpened: bool) -> Pixels:
    """Without the detail that fewer pixels cannot hold; 2 G - G^2 keeps the rest better than the Gaussian G alone."""
    sigma = (_CUBIC_BLUR if sharpened else _LINEAR_BLUR) * blur
    once = cv2.GaussianBlur(piece, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    if not sharpened:
        return np.asarray(once, np.float32)
    twice = cv2.GaussianBlur(once, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(2 * once - twice, np.float32)


class Window(NamedTuple):
    """A part of a picture, which may reach beyond it: x0 y0 x1 y1."""

    left: int
    top: int
    right: int
    bottom: int


def outline(matrix: Matrix, box: tuple[float, float, float, float]) -> tuple[Matrix, Matrix]:
    """Least and greatest x, y of a box taken through a matrix."""
    x0, y0, x1, y1 = box
    corners = transform(matrix, np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]))
    return corners.min(axis=0), corners.max(axis=0)


def _window(back: Matrix, size: tuple[int, int], step: float, multiple: int) -> Window:
    """The part of the source that a result of `size` reads, its sides multiples of `multiple`."""
    low, high = outline(back, (0, 0, *size))
    margin = math.ceil(3 * max(step, 1)) + 2  # three sigma of both Gaussians and the cubic's reach
    if not (np.abs([low, high]) < 1 << 30).all() or np.prod(high - low + 2 * margin) > MAX_PIXELS:
        raise UsageError(
            f"the crop covers {' x '.join(f'{v:.3g}' for v in high - low)} px of the picture",
            remedy=f"give a matrix whose crop covers at most {MAX_PIXELS:,} px",
        )
    left, top = (math.floor(v) - margin for v in low)
    width, height = (
        -(-(math.ceil(v) + margin - start) // multiple) * multiple for v, start in zip(high, (left, top), strict=True)
    )
    return Window(left, top, left + width, top + height)


def _cut(source: npt.NDArray[Any], window: Window, border: Border) -> npt.NDArray[Any]:
    """The window of the source, a view where it lies inside."""
    height, width = source.shape[:2]
    (left, right), (top, bottom) = _span(window.left, window.right, width), _span(window.top, window.bottom, height)
    inside = source[top:bottom, left:right]
    if (left, top, right, bottom) == window:
        return inside
    reach = (max(top - window.top, 0), max(window.bottom - bottom, 0), max(left - window.left, 0),
             max(window.right - right, 0))  # fmt: skip
    padded = cv2.copyMakeBorder(np.ascontiguousarray(inside), *reach, _BORDERS[border])
    x, y = window.left - left + reach[2], window.top - top + reach[0]
    return padded[y : y + window.bottom - window.top, x : x + window.right - window.left]


def _span(start: int, stop: int, length: int) -> tuple[int, int]:
    """Of an axis, what a window reads itself and what is reflected into it."""
    first, last = min(max(start, 0), length - 1), min(stop, length)
    if start < 0:
        last = max(last, min(1 - start, length))
    if stop > length:
        first = min(first, max(2 * length - stop - 1, 0))
    return first, max(last, first + 1)
