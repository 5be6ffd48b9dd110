"""The kernel library behind its C ABI (kernels/include/facesdk_attention.h): found, loaded, asked."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import EngineError, FaceSDKError, MissingDependency, ProviderUnavailable, UsageError

VERSION = 1
HEAD_DIMS = (24, 32, 40, 48, 64, 80, 96, 128, 160)
DTYPES = {"fp16": 0, "bf16": 1}
VARIABLE = "FACESDK_KERNELS"
BUILD = "cmake --preset all && cmake --build build"
_FILE = "facesdk_kernels.dll" if sys.platform == "win32" else "libfacesdk_kernels.so"
_HERE = Path(__file__).parent
_CHECKOUT = Path(__file__).parents[3]
# error codes of the header -> what they are here, and what fixes them
_ERRORS: dict[int, tuple[type[FaceSDKError], str]] = {
    1: (ProviderUnavailable, "look at: nvidia-smi"),
    2: (UsageError, "compare the arrays with the documentation of facesdk.kernels.attention"),
    3: (UsageError, f"head dims are {', '.join(map(str, HEAD_DIMS))}"),
    4: (ProviderUnavailable, "use a GPU of compute capability 8.0 or later, or NumPy arrays"),
    5: (UsageError, "give addresses that are multiples of 16 and strides that are multiples of 8 elements"),
    6: (EngineError, "look for an earlier error of the same process: CUDA reports failures late"),
}


class Tensor(ctypes.Structure):
    """facesdk_tensor and facesdk_output: address, and strides in elements."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64),
    )  # fmt: skip


class Arguments(ctypes.Structure):
    """facesdk_attention."""

    _fields_ = (
        *((name, Tensor) for name in ("q", "k", "v", "k2", "v2", "out")),
        *((name, ctypes.c_void_p) for name in ("query_bias", "weight2", "region", "subject", "subject2")),
        *((name, ctypes.c_int32) for name in ("batch", "heads", "dim", "queries", "keys", "keys2", "dtype")),
        ("scale", ctypes.c_float),
    )


class Library:
    """An open kernel library.  Raises ProviderUnavailable for a file that cannot be loaded or is of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._c = ctypes.CDLL(str(path.resolve()))
            self._c.facesdk_error_text.restype = ctypes.c_char_p
            for function in (self._c.facesdk_attention_check, self._c.facesdk_attention_forward):
                function.restype = ctypes.c_int32
            version = int(self._c.facesdk_attention_version())
        except (OSError, AttributeError) as error:
            raise ProviderUnavailable(f"{path} is no kernel library", cause=str(error), remedy=BUILD) from error
        if version != VERSION:
            fact = f"{path} has version {version} of the interface, this FaceSDK needs {VERSION}"
            raise ProviderUnavailable(fact, remedy=BUILD)

    def available(self) -> bool:
        """Whether a GPU that the kernels run on is here."""
        return bool(self._c.facesdk_cuda_available())

    def check(self, arguments: Arguments) -> None:
        """Raise UsageError where the arguments cannot be run; needs no device."""
        self._raise(self._c.facesdk_attention_check(ctypes.byref(arguments)))

    def forward(self, arguments: Arguments, stream: int = 0) -> None:
        """Queue the attention on a stream (its address; 0: the default one) and return at once.

        Raises UsageError, ProviderUnavailable, or EngineError where the launch fails.
        """
        self._raise(self._c.facesdk_attention_forward(ctypes.byref(arguments), ctypes.c_void_p(stream)))

    def _raise(self, code: int) -> None:
        if code:
            kind, remedy = _ERRORS.get(code, (EngineError, BUILD))
            raise kind("the attention kernel refuses", cause=self._c.facesdk_error_text(code).decode(), remedy=remedy)


def load(path: str | Path | None = None) -> Library:
    """The kernel library at `find(path)`, opened; raises what that raises, and ProviderUnavailable like `Library`."""
    return _open(find(path))


def find(path: str | Path | None = None) -> Path:
    """The file of the library: `path`, else $FACESDK_KERNELS (a file or its folder), else beside this package or built.

    Raises MissingDependency where there is none; a place that was named is the only one looked at.
    """
    named = path or os.environ.get(VARIABLE)
    places = [Path(named)] if named else [_HERE, _CHECKOUT / "build" / "kernels"]
    for file in _files(places):
        return file
    raise MissingDependency(
        "the attention kernels are not built",
        cause=f"no {_FILE} in {' or '.join(map(str, places))}" if not path else f"{path} does not exist",
        remedy=f"in a checkout of FaceSDK: {BUILD}; elsewhere set {VARIABLE} to the library",
    )


def cuda_available() -> bool:
    """Whether the kernels are built and a GPU that they run on is here.  Raises ProviderUnavailable like `load`."""
    try:
        return load().available()
    except MissingDependency:
        return False


def _files(places: list[Path]) -> Iterator[Path]:
    candidates = (place / _FILE if place.is_dir() else place for place in places)
    return (file for file in candidates if file.is_file())


@functools.cache
def _open(file: Path) -> Library:
    return Library(file)
