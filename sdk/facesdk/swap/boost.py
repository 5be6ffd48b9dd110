"""Pixel boost: a network of fixed size run on the interleaved sub-grids of a larger crop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Array = npt.NDArray[Any]


def split(crop: Array, factor: int) -> Array:
    """(factor * factor, size / factor, size / factor, ...): part i has every `factor`-th pixel from (y, x) on.

    y, x = divmod(i, factor).  Each part shows the whole face, which identity networks need and tiles do not give.
    """
    size = len(crop) if crop.ndim >= 2 else 0
    if factor < 1 or not size or crop.shape[:2] != (size, size) or size % factor:
        raise UsageError(
            f"a crop of shape {crop.shape} has no {factor} x {factor} sub-grids",
            remedy="give a square crop whose side is a multiple of the factor",
        )
    part, rest = size // factor, crop.shape[2:]
    grid = crop.reshape(part, factor, part, factor, *rest)
    return np.moveaxis(grid, (1, 3), (0, 1)).reshape(factor * factor, part, part, *rest)


def join(parts: Array) -> Array:
    """(size, size, ...) crop, the exact inverse of `split`."""
    factor = math.isqrt(len(parts)) if parts.ndim >= 3 else 0
    if not factor or factor * factor != len(parts) or parts.shape[1] != parts.shape[2]:
        raise UsageError(f"parts of shape {parts.shape} do not join", remedy="give all parts of one split, in order")
    part, rest = parts.shape[1], parts.shape[3:]
    grid = parts.reshape(factor, factor, part, part, *rest)
    return np.moveaxis(grid, (0, 1), (1, 3)).reshape(part * factor, part * factor, *rest)
