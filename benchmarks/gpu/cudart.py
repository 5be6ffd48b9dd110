"""libcudart through ctypes: for machines with neither torch nor cuda-bindings."""

from __future__ import annotations

import ctypes
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# numbers of the enumerations in driver_types.h
_ATTRIBUTES = types.SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)
_KINDS = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
# call -> (type of what it returns through its first argument or None, types of the rest)
_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "GetDeviceCount": (ctypes.c_int, ()),
    "SetDevice": (None, (ctypes.c_int,)),
    "DeviceGetAttribute": (ctypes.c_int, (ctypes.c_int, ctypes.c_int)),
    "StreamCreate": (ctypes.c_void_p, ()),
    "Malloc": (ctypes.c_void_p, (ctypes.c_size_t,)),
    "Memcpy": (None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)),
    "Free": (None, (ctypes.c_void_p,)),
    "DeviceSynchronize": (None, ()),
    "EventCreate": (ctypes.c_void_p, ()),
    "EventRecord": (None, (ctypes.c_void_p, ctypes.c_void_p)),
    "EventSynchronize": (None, (ctypes.c_void_p,)),
    "EventElapsedTime": (ctypes.c_float, (ctypes.c_void_p, ctypes.c_void_p)),
    "EventDestroy": (None, (ctypes.c_void_p,)),
}


class Cudart:
    """The few calls of libcudart that a device makes, in the form of cuda.bindings.runtime: (error, values...)."""

    cudaDeviceAttr = _ATTRIBUTES  # noqa: N815 as cuda.bindings.runtime has it
    cudaMemcpyKind = _KINDS  # noqa: N815 as cuda.bindings.runtime has it

    def __init__(self, path: str | Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, types_) in _CALLS.items():
            setattr(self, f"cuda{name}", self._bind(getattr(library, f"cuda{name}"), result, types_))

    @staticmethod
    def _bind(function: Any, result: Any, types_: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
        function.argtypes = ((ctypes.POINTER(result),) if result else ()) + types_

        def call(*arguments: Any) -> tuple[Any, ...]:
            if not result:
                return (function(*arguments),)
            place = result()
            return function(ctypes.byref(place), *arguments), place.value

        return call


def find_cudart() -> Path:
    """The library beside nvcc, among Python's packages, or where the system looks.  Raises OSError."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parents[1]] if nvcc else []
    places += [Path("/usr/local/cuda"), *(Path(place) / "nvidia" for place in sys.path)]
    for place in filter(Path.is_dir, places):
        for pattern in ("lib*/libcudart.so*", "targets/*/lib/libcudart.so*", "*/lib/libcudart.so*"):
            if found := sorted(place.glob(pattern)):
                return found[-1]
    raise OSError("no libcudart")
