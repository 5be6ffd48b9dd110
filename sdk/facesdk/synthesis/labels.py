"""Files beside a training set: the label of every picture, and masks, which name a part of the set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..files import atomic_path
from .folders import PICTURES, check_suffix, identities

#: identities of the published masks, and the seed of their draw
MASK_IDENTITIES, MASK_SEED = 50_000, 0


class Counts(NamedTuple):
    """What was written."""

    records: int
    identities: int


def write_labels(pictures: str | Path, output: str | Path) -> Counts:
    """Write the number of each picture's identity, a line a picture, in the order of a training set."""
    check_suffix(Path(output), ".txt")
    count = label = 0
    with atomic_path(output) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        for label, (_, files) in enumerate(identities(Path(pictures), PICTURES)):
            file.write(f"{label}\n" * len(files))
            count += len(files)
    return Counts(count, label + 1)


def write_mask(
    pictures: str | Path, output: str | Path, chosen: int = MASK_IDENTITIES, seed: int = MASK_SEED
) -> Counts:
    """Write the `identity_mask` of the training set of these pictures to a .npy file."""
    check_suffix(Path(output), ".npy")
    counts = np.fromiter((len(files) for _, files in identities(Path(pictures), PICTURES)), np.int64)
    mask = identity_mask(counts, chosen, seed)
    with atomic_path(output) as temporary, temporary.open("wb") as file:
        np.save(file, mask)
    return Counts(len(mask), chosen)


def identity_mask(
    counts: npt.NDArray[np.int64], chosen: int = MASK_IDENTITIES, seed: int = MASK_SEED
) -> npt.NDArray[np.int64]:
    """Numbers of the records of randomly chosen identities, grouped by identity in the order of the draw.

    counts  (N,) records of each identity, in the order of the set.  The draw is the published one for equal seeds.
    """
    if not 0 < chosen <= len(counts):
        raise UsageError(f"{chosen} identities of {len(counts)}", remedy=f"choose 1 to {len(counts)} identities")
    if not 0 <= seed < 1 << 32:
        raise UsageError(f"the seed is {seed}", remedy="give 0 to 4294967295")
    ends = np.cumsum(counts)
    draw = np.random.RandomState(seed).choice(len(counts), chosen, replace=False)
    return np.concatenate([np.arange(ends[each] - counts[each], ends[each]) for each in draw])
