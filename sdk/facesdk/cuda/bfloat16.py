"""bfloat16 in NumPy, which has no such dtype: rounded values in float32, or their 16 bits in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# bits of a float64's significand that bfloat16 has no room for: 52 - 7
_DROPPED = 45


def rounded(values: Array) -> npt.NDArray[np.float32]:
    """The nearest bfloat16 of each value, ties to even, in float32; rounded once, from float64 too."""
    bits = np.ascontiguousarray(values, np.float64).view(np.int64)
    nearest = bits + ((bits >> _DROPPED) & 1) + ((1 << (_DROPPED - 1)) - 1)
    nearest = np.where(np.isfinite(values), nearest >> _DROPPED << _DROPPED, bits)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the greatest bfloat16 lies infinity, as in hardware
        return nearest.view(np.float64).astype(np.float32).reshape(np.shape(values))


def to_bits(values: Array) -> npt.NDArray[np.uint16]:
    """What a device holds for these values."""
    return (rounded(values).view(np.uint32) >> 16).astype(np.uint16)


def from_bits(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The values behind 16 bits each."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
