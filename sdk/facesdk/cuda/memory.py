"""Arrays on the GPU for programs without torch or CuPy: memory from cuda-python, freed with the object."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, MissingDependency, ProviderUnavailable, UsageError, one_of
from . import bfloat16

#: name -> the NumPy dtype of as many bytes
STORAGE = {"fp16": np.float16, "bf16": np.uint16, "fp32": np.float32, "uint8": np.uint8}
_NO_DEVICE = {35, 100}  # cudaErrorInsufficientDriver, cudaErrorNoDevice


class DeviceArray:
    """A packed array on the current CUDA device.  `element` is fp16, bf16, fp32 or uint8; `pointer` its address."""

    def __init__(self, shape: Sequence[int], element: str) -> None:
        if element not in STORAGE:
            raise one_of("element", element, tuple(STORAGE))
        self.shape, self.element = tuple(shape), element
        self.nbytes = math.prod(self.shape) * np.dtype(STORAGE[element]).itemsize
        cuda = runtime()
        self.pointer = int(_called(cuda.cudaMalloc(max(self.nbytes, 1))))
        weakref.finalize(self, cuda.cudaFree, self.pointer).atexit = False  # the process takes its memory with it

    @classmethod
    def of(cls, values: npt.NDArray[Any], element: str | None = None) -> DeviceArray:
        """A copy of NumPy values; `element` is needed for bf16 alone, which NumPy does not have."""
        names = {np.dtype(dtype): name for name, dtype in STORAGE.items() if name != "bf16"}
        element = element or names.get(values.dtype)
        if element is None:
            raise UsageError(f"values are {values.dtype}", remedy="give float16, float32 or uint8, or name the element")
        held = bfloat16.to_bits(values) if element == "bf16" else np.ascontiguousarray(values, STORAGE[element])
        array, cuda = cls(values.shape, element), runtime()
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _called(cuda.cudaMemcpy(array.pointer, held.ctypes.data, array.nbytes, kind))
        return array

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in host memory, after all work queued on the device; bf16 comes as float32."""
        cuda, held = runtime(), np.empty(self.shape, STORAGE[self.element])
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _called(cuda.cudaDeviceSynchronize())
        _called(cuda.cudaMemcpy(held.ctypes.data, self.pointer, self.nbytes, kind))
        return bfloat16.from_bits(held) if self.element == "bf16" else held

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.element == "bf16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        typestr = np.dtype(STORAGE[self.element]).str
        return {"shape": self.shape, "typestr": typestr, "data": (self.pointer, False), "version": 3, "strides": None}


@functools.cache
def runtime() -> Any:
    """The module cuda.bindings.runtime.  Raises MissingDependency."""
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise MissingDependency(
            "memory on the GPU needs cuda-python", cause=str(error), remedy="pip install cuda-python"
        ) from error
    return module


def _called(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-python answers after its error code."""
    code, *values = answer
    if int(code) in _NO_DEVICE:
        raise ProviderUnavailable(
            "there is no CUDA device that can be used here", cause=code.name, remedy="look at: nvidia-smi"
        )
    if int(code):
        raise EngineError("a call of the CUDA runtime failed", cause=code.name, remedy="look at: nvidia-smi")
    return values[0] if values else None
