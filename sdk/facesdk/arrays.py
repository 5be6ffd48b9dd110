"""Numpy files that came from elsewhere: one array, read without running anything, or an error that names the file."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import UsageError

# what numpy and the parser of Python below it raise on damaged headers
_DAMAGE = (ValueError, EOFError, SyntaxError, KeyError, TypeError, tokenize.TokenError, RecursionError, MemoryError)


def read_array(source: Path | bytes, name: object = "", *, mapped: bool = False) -> npt.NDArray[np.generic]:
    """The array of a .npy file, or of the bytes of one; messages call it `name` (default: the path).

    mapped  leave the values on disk until they are used; for paths.
    Raises UsageError where the file is missing, damaged, an archive, or holds Python objects.
    """
    name = name or source
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        array = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise UsageError(
            f"{name} cannot be read", cause=error.strerror or str(error), remedy="give a .npy file that you may read"
        ) from error
    except _DAMAGE as error:
        raise UsageError(
            f"{name} cannot be read as an array", cause=str(error).partition("\n")[0], remedy=_REMEDY
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UsageError(f"{name} is an archive of arrays (.npz), not one array", remedy=_REMEDY)
    return array


_REMEDY = "make it again with numpy.save, as one array of numbers"
