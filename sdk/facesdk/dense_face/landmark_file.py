"""The landmark files of T2I-Dense-Face: 478 lines `x,y`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..files import write_text
from .crop import Points

COUNT = 478


def save_landmarks(path: str | os.PathLike[str], landmarks: Points) -> None:
    """Write x and y of (478, 2+) landmarks, fractions of the crop, as C's %.18e: 23,900 bytes where none is negative.

    Raises UsageError for another number of points or values that are not finite, OutputError.
    """
    if landmarks.ndim != 2 or len(landmarks) != COUNT or landmarks.shape[1] < 2:
        raise UsageError(
            f"landmarks of shape {landmarks.shape}, the file holds {COUNT} points",
            cause="the mesh has no irises" if len(landmarks) == 468 else "",
            remedy="annotate with the bundle annotation-478",
        )
    if not np.isfinite(landmarks[:, :2]).all():
        raise UsageError("landmarks that are not finite", remedy="annotate the picture again")
    write_text(Path(path), "".join(f"{x:.18e},{y:.18e}\n" for x, y in landmarks[:, :2].tolist()))


def load_landmarks(path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
    """(478, 2) fractions of the crop.  Raises UsageError where the file is missing or is something else."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        landmarks = np.array([[float(value) for value in line.split(",")] for line in lines])
    except (OSError, ValueError) as error:
        raise _not_landmarks(path, str(error)) from error
    if landmarks.shape != (COUNT, 2) or not np.isfinite(landmarks).all():
        raise _not_landmarks(path, f"shape {landmarks.shape}, or values that are not finite")
    return landmarks


def _not_landmarks(path: str | os.PathLike[str], cause: str) -> UsageError:
    return UsageError(
        f"{Path(path)} is not a landmark file",
        cause=cause,
        remedy=f"give a file of {COUNT} lines x,y, as save_landmarks writes it",
    )
