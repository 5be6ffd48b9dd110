"""Identity vectors as files and arrays: opened without being read, checked before they cost hours."""

from __future__ import annotations

import math
import tokenize
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Floats = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.floating]

#: values of an identity vector
WIDTH = 512
#: length of the vectors that Vec2Face was trained on: 512 values of mean 0.0046 and standard deviation 0.967
NORM = 22
#: Lengths that pass: half to twice NORM.  A mean over photos of one person is shorter than each by no more than the
#: root of their cosine: half the length is a cosine of 0.25, hardly one person.  Unit vectors and such times 64, the
#: scale inside recognition losses, lie outside.
NORMS = (NORM / 2, NORM * 2)
#: how far from 1 the length of a normalised vector may be
_ROUNDING = 0.01
_SHOWN = 5
#: what a damaged header makes numpy, and the parser of Python below it, stumble over
_UNREADABLE = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)
_ARCHIVE, _NPY = b"PK", b"\x93NUMPY"
_SAVE = "save them with numpy.save as one array (N, 512) of float32"
_RAW = "give the encoder's output as it was before it was normalised"
_ALL_THE_SAME = "unusual=True lets them pass all the same"


def open_vectors(path: str | Path) -> Vectors:
    """Memory-mapped (N, 512) array of float16, float32 or float64 in a .npy file, of which only the header is read.

    Raises UsageError where the file is anything else, or is longer or shorter than its header says.
    """
    path = Path(path)
    if not path.is_file():
        fact = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise UsageError(fact, remedy="give the .npy file of the identity vectors")
    try:
        return _mapped(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", cause=error.strerror or str(error), remedy="check its permissions and its disk"
        ) from error


def check_vectors(
    rows: npt.NDArray[np.generic], first: int = 0, *, unusual: bool = False, what: str = "identity vectors"
) -> Floats:
    """The rows as float32 (n, 512), fit for the generator; messages number them from `first` and call them `what`.

    Raises UsageError for another width or dtype, values that are not finite, rows of zeros, and, unless `unusual`,
    lengths outside NORMS.
    """
    rows = np.asarray(rows)
    if rows.shape != (0, WIDTH) and (reason := _misfit(rows.shape, rows.dtype)):
        raise UsageError(f"these are no {what}", cause=reason, remedy="give an array (n, 512) of float32")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(rows, np.float32)
    norms = _norms(vectors)
    for wrong, found in ((~np.isfinite(norms), "NaN or infinite values"), (norms == 0, "nothing but zeros")):
        if wrong.any():
            fact = f"{_named(wrong, first)} of the {what}: {found}"
            raise UsageError(fact, remedy="make them again, or leave them out")
    if not unusual:
        _check_lengths(norms, first, what)
    return vectors


def unit_vectors(rows: npt.NDArray[np.generic], first: int = 0, what: str = "identity vectors") -> Floats:
    """The rows as float32 (n, 512) of length 1; raises as `check_vectors` does, but for their lengths."""
    vectors = check_vectors(rows, first, unusual=True, what=what)
    lengths: Floats = _norms(vectors).astype(np.float32)
    return vectors / lengths[:, None]


def _mapped(path: Path) -> Vectors:
    shape, fortran, dtype, start = _header(path)
    if reason := _misfit(shape, dtype):
        raise UsageError(f"{path} holds no identity vectors", cause=reason, remedy=_SAVE)
    announced, found = start + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if announced != found:
        raise UsageError(
            f"{path} is damaged",
            cause=f"its header announces {announced} bytes, there are {found}",
            remedy="copy it again, or make it again",
        )
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, whether columns come first, dtype, and where the values begin."""
    formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file:
        magic = file.read(len(_NPY))
        if magic != _NPY:
            raise UsageError(f"{path} is not a .npy file", cause=_instead(magic), remedy=_SAVE)
        file.seek(0)
        try:
            shape, fortran, dtype = formats[np.lib.format.read_magic(file)](file)
        except _UNREADABLE as error:
            raise UsageError(f"{path} is damaged", cause="its header cannot be read", remedy="make it again") from error
        return tuple(map(int, shape)), fortran, dtype, file.tell()


def _instead(magic: bytes) -> str:
    if not magic:
        return "the file is empty"
    if magic.startswith(_ARCHIVE):
        return "it is an archive, of several arrays (.npz) or of a checkpoint"
    return "it begins like none: a pickle, text, or another format"


def _misfit(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> str:
    """Why an array cannot be identity vectors, or ''."""
    if dtype.hasobject:
        return "its values are pickled Python objects, which are never read"
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        return f"its values are {dtype}, not float16, float32 or float64"
    if len(shape) != 2:
        one = ": a single vector is vector[None]" if shape == (WIDTH,) else ""
        return f"its shape is {shape}, not (N, {WIDTH}){one}"
    if shape[1] != WIDTH:
        return f"the generator wants {WIDTH} values, these vectors have {shape[1]}: another encoder made them"
    return "" if shape[0] > 0 else "it has no rows"


def _check_lengths(norms: npt.NDArray[np.float64], first: int, what: str) -> None:
    normalised = np.abs(norms - 1) < _ROUNDING
    if normalised.any():
        raise UsageError(
            f"{_named(normalised, first)} of the {what}: of length 1, so they are normalised",
            cause=f"the generator wants ArcFace's raw output, vectors about {NORM} long",
            remedy=f"{_RAW}, or multiply them by {NORM}; {_ALL_THE_SAME}",
        )
    outside = (norms < NORMS[0]) | (norms > NORMS[1])
    if outside.any():
        lengths = ", ".join(f"{length:.3g}" for length in norms[outside][:_SHOWN])
        raise UsageError(
            f"{_named(outside, first)} of the {what}: of length {lengths}",
            cause=f"the generator was trained on ArcFace's raw output, vectors about {NORM} long; "
            f"{NORMS[0]:g} to {NORMS[1]:g} pass",
            remedy=f"use the encoder that the generator was trained with, and do not scale its output; {_ALL_THE_SAME}",
        )


def _norms(vectors: Floats) -> npt.NDArray[np.float64]:
    """(n,) lengths, without a copy of the vectors in float64."""
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares)


def _named(wrong: npt.NDArray[np.bool_], first: int) -> str:
    """The first few rows by number: "rows 3, 4 and 20 more"."""
    numbers = np.flatnonzero(wrong)
    text = ", ".join(str(first + number) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {text}{more}"
