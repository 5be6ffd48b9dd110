"""What the names and shapes of a checkpoint's entries tell of its network's sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor


def size_of(entries: Mapping[str, Tensor], name: str, axis: int, published: int) -> int:
    """Size of an entry along an axis; the published one where the entry or its axis is absent or empty."""
    shape = entries[name].shape if name in entries else ()
    return (shape[axis] if axis < len(shape) else 0) or published


def numbers_in(names: Iterable[str], pattern: str) -> list[int]:
    """The different numbers, ascending, at the place of the group in the names that begin with the pattern."""
    return sorted({int(found[1]) for name in names if (found := re.match(pattern, name))})
