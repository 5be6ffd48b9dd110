"""Random streams by name: what one row draws does not depend on what else was drawn."""

from __future__ import annotations

import zlib

import numpy as np

from ..errors import UsageError

Rng = np.random.Generator | np.random.RandomState


def random(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The stream of (seed, purpose, numbers): always the same, and independent of every other one's.

    seed: 0 <= seed < 2**128; numbers: 0 <= number < 2**32, say an identity and its picture.
    """
    if not 0 <= seed < 1 << 128:
        raise UsageError(f"the seed is {seed}", remedy="give a whole number of 0 or more, below 2**128")
    if not all(0 <= number < 1 << 32 for number in numbers):
        raise UsageError(f"the numbers of a stream are {numbers}", remedy="give whole numbers from 0 to 2**32 - 1")
    # spawn_key, as entropy itself takes trailing zeros for nothing
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *numbers)))
