"""Identity centres: the mean of each person's embeddings, from folders {root}/{identity}/{picture}.npy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import read_array
from ..errors import UsageError
from ..files import atomic_path
from .folders import FEATURES, OnIdentity, check_suffix, files_of, identities

#: values in an embedding of ArcFace
WIDTH = 512
Feature = npt.NDArray[np.float32]


def write_centres(
    root: str | Path, output: str | Path, *, width: int = WIDTH, on_identity: OnIdentity | None = None
) -> list[str]:
    """The identities in order, after writing the mean of each as a row of `output`, float32 (N, width) .npy.

    Their names go into a text file of the same name beside it, a line each.  Memory does not grow with the pictures.
    Raises UsageError where a feature is unreadable, not finite or of another width, and writes nothing then.
    """
    root, output = Path(root), Path(output)
    check_suffix(output, ".npy")
    if width < 1:
        raise UsageError(f"embeddings of {width} values", remedy=f"give a positive width; ArcFace's is {WIDTH}")
    names = [name for name, _ in identities(root, FEATURES)]
    with atomic_path(output.with_suffix(".txt")) as name_list, atomic_path(output) as temporary:
        rows = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(names), width))
        for number, name in enumerate(names):
            rows[number] = centre(files_of(root / name, FEATURES), width)
            if on_identity is not None:
                on_identity(number + 1, len(names))
        rows.flush()
        del rows
        name_list.write_bytes(b"".join(os.fsencode(name) + b"\n" for name in names))
    return names


def centre(paths: Sequence[Path], width: int | None = WIDTH) -> Feature:
    """Mean of the features of one or more files, float32 (width,), summed in float64."""
    total = read_feature(paths[0], width).astype(np.float64)
    for path in paths[1:]:
        total += read_feature(path, len(total))
    return (total / len(paths)).astype(np.float32)


def read_feature(source: Path | bytes, width: int | None = WIDTH, name: object = "") -> Feature:
    """The embedding, float32 (width,), of a .npy file or its bytes; None: of any width.

    Raises UsageError, which calls the source `name` (default: its path), also for values that are not finite.
    """
    array = read_array(source, name)
    if array.dtype.kind != "f" or array.ndim != 1 or (width is not None and len(array) != width):
        cause = f"it holds {array.dtype} of shape {array.shape}, not floats of shape ({width or 'n'},)"
    elif not np.isfinite(array).all():
        cause = "it holds values that are not finite"
    else:
        return array.astype(np.float32)
    raise UsageError(
        f"{name or source} is no embedding", cause=cause, remedy="extract the feature of that picture again"
    )
