"""How far vectors lie apart: from each other, and from a set that they must not leak."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .vectors import Floats, Vectors, unit_vectors

Progress = Callable[[int, int], None]  # vectors so far, vectors in all

#: rows compared at a time; 2048 x 2048 cosines are 16 MiB
BLOCK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Leakage:
    """For every vector its largest cosine to the reference set, float32 (n,), and the row there, int64 (n,)."""

    cosines: Floats
    rows: npt.NDArray[np.int64]
    threshold: float

    @property
    def over(self) -> int:
        """Vectors whose largest cosine exceeds the threshold."""
        return int((self.cosines > self.threshold).sum())


def separable(
    vectors: Vectors, threshold: float = 0.4, block: int = BLOCK, on_progress: Progress | None = None
) -> npt.NDArray[np.bool_]:
    """Bool (N,): no earlier vector has a cosine above the threshold.  Time grows with N squared, memory does not."""
    check_threshold(threshold)
    alone = np.ones(len(vectors), bool)
    for start, rows in unit_blocks(vectors, block):
        near = np.tril(rows @ rows.T > threshold, -1).any(axis=1)
        for _, earlier in unit_blocks(vectors[:start], block):
            near |= (rows @ earlier.T > threshold).any(axis=1)
        alone[start : start + len(rows)] = ~near
        if on_progress:
            on_progress(start + len(rows), len(vectors))
    return alone


def prefix_counts(alone: npt.NDArray[np.bool_], step: int = 1000) -> list[tuple[int, int]]:
    """(length, separable vectors in it) of prefixes that grow by `step`; the last is the whole."""
    sums = np.cumsum(alone)
    return [(end, int(sums[end - 1])) for end in (*range(step, len(alone), step), len(alone)) if end]


def leakage(
    vectors: Vectors,
    reference: Vectors,
    threshold: float = 0.4,
    block: int = BLOCK,
    on_progress: Progress | None = None,
) -> Leakage:
    """The reference row most like each vector, the first of equals; `reference` may be memory-mapped.

    `on_progress` counts rows of the reference.  Raises UsageError where the reference set is empty.
    """
    check_threshold(threshold)
    if not len(reference):
        raise UsageError("the reference set has no vectors", remedy="give the centres of the training set, (N, 512)")
    cosines = np.full(len(vectors), -np.inf, np.float32)
    nearest = np.zeros(len(vectors), np.int64)
    for first, known in unit_blocks(reference, block, "reference vectors"):
        for start, rows in unit_blocks(vectors, block):
            here = slice(start, start + len(rows))
            found = rows @ known.T
            best = found.argmax(axis=1)
            largest = found[np.arange(len(rows)), best]
            better = largest > cosines[here]
            nearest[here] = np.where(better, first + best, nearest[here])
            cosines[here] = np.where(better, largest, cosines[here])
        if on_progress:
            on_progress(first + len(known), len(reference))
    return Leakage(cosines, nearest, threshold)


def unit_blocks(vectors: Vectors, block: int = BLOCK, what: str = "identity vectors") -> Iterator[tuple[int, Floats]]:
    """(first row, rows of length 1) of one block after another; raises as `unit_vectors`."""
    for start in range(0, len(vectors), block):
        yield start, unit_vectors(vectors[start : start + block], start, what)


def check_threshold(threshold: float) -> None:
    """Raises UsageError for what is no cosine above 0."""
    if not 0 < threshold <= 1:
        raise UsageError(f"the cosine threshold is {threshold}", remedy="give a number above 0, at most 1")
