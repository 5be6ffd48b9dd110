"""Comparing two engines on the same arrays: how far a derived engine is from its reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from .engine import Array, Arrays, Engine
from .errors import EngineError


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far one output is from its reference, over the elements that are finite in both.

    max_abs, mean_abs  of |candidate - reference|.
    max_in_std         max_abs in standard deviations of the reference; infinite where that does not vary.
    cosine             between the two outputs as vectors.
    nan                NaN in the candidate.   infinite   elements infinite in one of them only.
    """

    output: str
    max_abs: float
    max_in_std: float
    mean_abs: float
    cosine: float
    nan: int
    infinite: int


def compare(reference: Engine, candidate: Engine, arrays: Arrays) -> tuple[Deviation, ...]:
    """The deviation of every output of the reference, in its order; raises EngineError where one is missing."""
    expected, actual = reference(**arrays), candidate(**arrays)
    if missing := expected.keys() - actual.keys():
        raise EngineError(
            f"{candidate.path.name} has no output {', '.join(sorted(missing))}",
            remedy="compare two engines of one graph",
        )
    return tuple(deviation(name, expected[name], actual[name]) for name in expected)


def deviation(output: str, reference: Array, candidate: Array) -> Deviation:
    """How far `candidate` is from `reference`; raises EngineError where the shapes differ."""
    if reference.shape != candidate.shape:
        raise EngineError(
            f"output {output} has shapes {reference.shape} and {candidate.shape}",
            remedy="compare two engines of one graph",
        )
    a, b = np.asarray(reference, np.float64).ravel(), np.asarray(candidate, np.float64).ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    differences = np.abs(a[finite] - b[finite])
    largest = float(differences.max(initial=0.0))
    return Deviation(
        output=output,
        max_abs=largest,
        max_in_std=_ratio(largest, float(a[finite].std()) if finite.any() else 0.0),
        mean_abs=float(differences.mean()) if finite.any() else 0.0,
        cosine=_cosine(a[finite], b[finite]),
        nan=int(np.isnan(b).sum()),
        infinite=int((np.isinf(a) | np.isinf(b))[a != b].sum()),
    )


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit else math.inf if value else 0.0


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths:
        return float(np.clip(a @ b / lengths, -1, 1))
    return 1.0 if np.array_equal(a, b) else 0.0
