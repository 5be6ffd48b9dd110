"""Identity vectors in the files that Dense-Face publishes: one numpy array, written by torch.save."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facesdk.errors import ConversionError, ModelNotFound
from facesdk.files import atomic_path

from .archives import TorchZip
from .pickles import Constructors, Inert, Refused, unpickle

#: shape of the published vectors, ArcFace IR-SE50 of L2 norm 1
SHAPE = (1, 512)
_TYPES = ("f4", "f8")


def read_features(path: str | Path) -> NDArray[np.float32]:
    """The (1, 512) identity vector of a file; nothing in the file is executed.

    Raises ModelNotFound, or ConversionError where it holds anything but one finite array of that shape.
    """
    path = Path(path)
    try:
        array = unpickle(io.BytesIO(TorchZip(path).pickle()), _constructors(), inert=False)
        if not isinstance(array, _Array) or array.values is None:
            raise ValueError(f"it holds a {type(array).__name__}, not an array")
        if array.values.shape != SHAPE:
            raise ValueError(f"its array has shape {array.values.shape}, not {SHAPE}")
        if not np.isfinite(array.values).all():
            raise ValueError("its array holds values that are not finite")
        return array.values.astype(np.float32)
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist", remedy="check the path") from error
    except Refused as error:
        raise _unreadable(path, f"it wants to create {error.args[0]}, which was refused; nothing was run") from error
    except (ValueError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def write_features(path: str | Path, features: ArrayLike) -> None:
    """Write a (1, 512) vector in the published format, byte for byte as numpy 1 and torch.save did.

    Raises ConversionError for another shape or values that are not finite, OutputError.
    """
    array = np.ascontiguousarray(features, np.float32)
    if array.shape != SHAPE or not np.isfinite(array).all():
        raise ConversionError(
            f"an array of shape {array.shape} is no identity vector", remedy=f"give finite numbers of shape {SHAPE}"
        )
    # numpy 2 names the module numpy._core, which numpy 1 does not know; the name comes first in the pickle
    data = pickle.dumps(array, protocol=2).replace(b"numpy._core", b"numpy.core", 1)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


def _unreadable(path: Path, cause: str) -> ConversionError:
    return ConversionError(
        f"{path} is no identity vector that can be read",
        cause=cause,
        remedy=f"give a file that torch.save made of one float array of shape {SHAPE}",
    )


class _Array(Inert):
    """Takes the state of a numpy array apart; numpy's own code would trust it."""

    values: NDArray[np.floating] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Kind) or not isinstance(data, bytes):
            raise ValueError("its array is not of numbers")
        dtype = np.dtype(kind.order + kind.code)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"its array of shape {shape} has {len(data)} bytes")
        self.values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class _Kind(Inert):
    """A numpy dtype: one of two floating-point numbers, in either byte order."""

    order = "<"

    def __init__(self, code: str, *_: object) -> None:
        if code not in _TYPES:
            raise ValueError(f"its array is of type {code!r:.20}")
        self.code = code

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] not in ("<", ">", "="):
            raise ValueError("its array has an unknown byte order")
        self.order = str(state[1])


def _constructors() -> Constructors:
    """The four names that such a file needs; both spellings of numpy's module."""
    return {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): lambda *arguments: _Kind(*arguments),
        ("_codecs", "encode"): lambda text, _="latin1": text.encode("latin1"),
    }
