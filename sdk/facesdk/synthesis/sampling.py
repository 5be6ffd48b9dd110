"""New identities: vectors drawn from a law, each far enough from all before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, one_of
from . import seeds
from .separability import Progress, check_threshold, unit_blocks
from .vectors import WIDTH, Floats, Vectors, check_vectors, unit_vectors

Law = Literal["normal", "pca"]

#: candidates drawn at a time; another number gives a seed other vectors
POOL = 2048
#: the share of a pool below which sampling gives up
LEAST_ACCEPTED = 0.01


def sample_vectors(
    count: int,
    seed: int,
    law: Law = "normal",
    centres: Vectors | None = None,
    threshold: float | None = 0.4,
    *,
    unusual: bool = False,
    on_progress: Progress | None = None,
) -> Floats:
    """float32 (count, 512): the same for a seed, and fewer of them are the first of more.

    law: "normal" (values N(0, 1)) or "pca" (the Gaussian of `centres`, un-normalised (N, 512), checked as
    `check_vectors` does with `unusual`).  threshold: a candidate nearer (cosine) to an accepted one is left out; None
    takes all.  Raises UsageError where hardly any candidate is accepted.
    """
    if count < 0:
        raise UsageError(f"{count} vectors were asked for", remedy="give a number of 0 or more")
    if threshold is not None:
        check_threshold(threshold)
    draw = _law(law, centres, unusual)
    vectors, found = np.empty((count, WIDTH), np.float32), 0
    for pool in itertools.count():
        if found == count:
            break
        candidates = draw(seeds.random(seed, "vectors", pool))
        if threshold is not None:
            candidates = candidates[_separated(candidates, vectors[:found], threshold)]
        taken = candidates[: count - found]
        vectors[found : found + len(taken)] = taken
        found += len(taken)
        if on_progress:
            on_progress(found, count)
        if found < count and len(candidates) < LEAST_ACCEPTED * POOL:
            raise _crowded(found, count, len(candidates), threshold)
    return vectors


def _separated(candidates: Floats, accepted: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Which candidates are accepted, one after another, besides those that are already."""
    units = unit_vectors(candidates)
    free = np.ones(len(units), bool)
    for _, others in unit_blocks(accepted):
        free &= ~(units @ others.T > threshold).any(axis=1)
    near = units @ units.T > threshold
    for row in range(len(units)):
        if free[row]:
            free[row + 1 :] &= ~near[row, row + 1 :]
    return free


def _law(law: Law, centres: Vectors | None, unusual: bool) -> Callable[[np.random.Generator], Floats]:
    """The function that draws one pool of candidates."""
    if law not in get_args(Law):
        raise one_of("law", law, get_args(Law))
    if law == "normal":
        if centres is not None:
            raise UsageError("centres were given, but the normal law has none", remedy="choose the law 'pca'")
        return lambda rng: rng.standard_normal((POOL, WIDTH)).astype(np.float32)
    if centres is None:
        raise UsageError(
            "the pca law has nothing to be fitted to",
            remedy=f"give the centres of {WIDTH} identities or more, or choose the law 'normal'",
        )
    mean, root = _gaussian(centres, unusual)
    return lambda rng: (mean + rng.standard_normal((POOL, WIDTH)) @ root).astype(np.float32)


def _gaussian(centres: Vectors, unusual: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (512,) of the centres, and the symmetric root (512, 512) of their covariance.

    Vec2Face samples the coordinates of a PCA with as many components as values: a rotation, hence the same law.  The
    symmetric root is one and the same whatever sign an eigenvector comes out with.
    """
    count = len(centres)
    if count < WIDTH:
        raise UsageError(
            f"{count} centres are too few for the pca law",
            cause=f"its {WIDTH} components need at least as many centres",
            remedy=f"give the centres of {WIDTH} identities or more, or choose the law 'normal'",
        )
    total, products = np.zeros(WIDTH), np.zeros((WIDTH, WIDTH))
    for start in range(0, count, POOL):
        rows = check_vectors(centres[start : start + POOL], start, unusual=unusual, what="centres").astype(np.float64)
        total += rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / count
    variances, directions = np.linalg.eigh((products - count * np.outer(mean, mean)) / (count - 1))
    return mean, directions * np.sqrt(np.maximum(variances, 0)) @ directions.T


def _crowded(found: int, count: int, last: int, threshold: float | None) -> UsageError:
    return UsageError(
        f"{found} of {count} vectors were found that lie apart by a cosine of {threshold}",
        cause=f"of the last {POOL} candidates {last} were accepted: there is hardly room for more",
        remedy=f"ask for {found} or fewer, raise the threshold, or give centres that differ more",
    )
