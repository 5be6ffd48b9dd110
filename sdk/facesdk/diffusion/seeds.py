"""Random numbers of a picture by its seed alone: the same in any batch, whatever else is drawn."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]

#: seeds are below it
LIMIT = 1 << 63


def check_seeds(seed: int, images: int = 1) -> None:
    """Raise UsageError unless seed .. seed + images - 1 are seeds."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= LIMIT - images:
        raise UsageError(f"the seed is {seed!r}", remedy="give a whole number of 0 or more; the last one below 2**63")


def start(seed: int, shape: Shape) -> Floats:
    """Standard normal values of the start latent."""
    return _normal(seed, "start", shape)


def step_noise(seed: int, steps: int, shape: Shape) -> Floats:
    """(steps, *shape) standard normal; row i does not depend on how many follow."""
    return _normal(seed, "step", (steps, *shape))


def blend_noise(seed: int, steps: int, shape: Shape) -> Floats:
    """(steps, *shape) standard normal of what inpainting mixes in; row i does not depend on how many follow."""
    return _normal(seed, "blend", (steps, *shape))


def posterior(seed: int, shape: Shape) -> Floats:
    """Standard normal values by which a latent is drawn of a picture's mean and variance."""
    return _normal(seed, "posterior", shape)


def _normal(seed: int, purpose: str, shape: Shape) -> Floats:
    # spawn_key, as entropy itself takes trailing zeros for nothing
    sequence = np.random.SeedSequence(int(seed), spawn_key=(zlib.crc32(purpose.encode()),))
    return np.random.Generator(np.random.Philox(sequence)).standard_normal(shape, np.float32)
