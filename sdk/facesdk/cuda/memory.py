"""Memory of the GPU and page-locked memory of the host, freed with the object, and arrays in them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EngineClosed, OutOfMemory, UsageError, one_of
from . import bfloat16, dlpack
from .runtime import bindings, called, out_of_memory
from .stream import DEFAULT, Event

Array = npt.NDArray[Any]
#: element -> the NumPy dtype of as many bytes
STORAGE = {
    "fp16": np.float16, "bf16": np.uint16, "fp32": np.float32, "fp64": np.float64,
    "uint8": np.uint8, "int8": np.int8, "int32": np.int32, "int64": np.int64, "bool": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in STORAGE.items() if name != "bf16"}
_ALLOCATION = 2  # cudaErrorMemoryAllocation


class Buffer:
    """Uninitialised memory of the current device, its address a multiple of 256.  Raises OutOfMemory."""

    def __init__(self, nbytes: int) -> None:
        cuda = bindings()
        self.nbytes, self.device = nbytes, int(called(cuda.cudaGetDevice()))
        answer = cuda.cudaMalloc(max(nbytes, 1))
        if int(answer[0]) == _ALLOCATION:
            raise out_of_memory(nbytes)
        self._pointer = int(called(answer))
        self._free = weakref.finalize(self, cuda.cudaFree, self._pointer)
        self._free.atexit = False  # the process takes its memory with it

    @property
    def pointer(self) -> int:
        """The address.  Raises EngineClosed after `close()`."""
        if not self._free.alive:
            raise EngineClosed("memory of the GPU was used after it was freed", remedy="keep its engine open")
        return self._pointer

    def close(self) -> None:
        """Free the memory; again, it does nothing.  No work that uses it may be queued."""
        self._free()


class Pinned:
    """Page-locked memory of the host, which the GPU copies by itself while the processor goes on."""

    def __init__(self, nbytes: int) -> None:
        cuda = bindings()
        self.nbytes = nbytes
        answer = cuda.cudaHostAlloc(max(nbytes, 1), cuda.cudaHostAllocDefault)
        if int(answer[0]) == _ALLOCATION:
            raise OutOfMemory(
                f"the host has no room for {nbytes / 1e6:.1f} MB of page-locked memory",
                cause=answer[0].name,
                remedy="close other programs, or take a smaller batch",
            )
        self._pointer = int(called(answer))
        self._free = weakref.finalize(self, cuda.cudaFreeHost, self._pointer)
        self._free.atexit = False

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """The first bytes as an array, uninitialised; it keeps the memory until `close()`."""
        if not self._free.alive:
            raise EngineClosed("page-locked memory was used after it was freed", remedy="open the engine again")
        _check_room(shape, np.dtype(dtype).itemsize, self.nbytes)
        return dlpack.at_address(self._pointer, tuple(shape), dtype, self)

    def close(self) -> None:
        """Free the memory and end its arrays; again, it does nothing.  No copy that uses it may be queued."""
        self._free()


class DeviceArray:
    """A packed array on the current CUDA device.  `element` names its dtype: a key of STORAGE.

    `ready` is the mark after which its values are there; without one, they are there when the device is idle.
    """

    def __init__(self, shape: Sequence[int], element: str) -> None:
        if element not in STORAGE:
            raise one_of("element", element, tuple(STORAGE))
        self._place(Buffer(math.prod(shape) * np.dtype(STORAGE[element]).itemsize), shape, element)

    @classmethod
    def at(
        cls, buffer: Buffer, shape: Sequence[int], dtype: npt.DTypeLike, *, ready: Event | None = None
    ) -> DeviceArray:
        """The memory of a buffer as an array that keeps it; `dtype` may be "bf16".  Nothing is copied."""
        element = "bf16" if isinstance(dtype, str) and dtype == "bf16" else _element(np.dtype(dtype))
        _check_room(shape, np.dtype(STORAGE[element]).itemsize, buffer.nbytes)
        array = cls.__new__(cls)
        array._place(buffer, shape, element, ready)
        return array

    @classmethod
    def of(cls, values: Array, element: str | None = None) -> DeviceArray:
        """A copy of NumPy values; `element` is needed for bf16 alone, which NumPy does not have."""
        element = element or _element(values.dtype)
        array, cuda = cls(values.shape, element), bindings()
        held = bfloat16.to_bits(values) if element == "bf16" else np.ascontiguousarray(values, STORAGE[element])
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        called(cuda.cudaMemcpy(array.pointer, held.ctypes.data, array.nbytes, kind))
        called(cuda.cudaStreamSynchronize(DEFAULT))  # the copy of pageable memory returns before its last transfer
        return array

    def _place(self, buffer: Buffer, shape: Sequence[int], element: str, ready: Event | None = None) -> None:
        self.buffer, self.shape, self.element, self.ready = buffer, tuple(shape), element, ready
        self.nbytes = math.prod(self.shape) * np.dtype(STORAGE[element]).itemsize

    @property
    def pointer(self) -> int:
        """The address.  Raises EngineClosed where the buffer was closed."""
        return self.buffer.pointer

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """None for bf16."""
        return None if self.element == "bf16" else np.dtype(STORAGE[self.element])

    def numpy(self) -> Array:
        """A copy in host memory, once the values are there; bf16 comes as float32."""
        cuda = bindings()
        held: Array = np.empty(self.shape, STORAGE[self.element])
        self.wait()
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        called(cuda.cudaMemcpy(held.ctypes.data, self.pointer, self.nbytes, kind))
        return bfloat16.from_bits(held) if self.element == "bf16" else held

    def wait(self) -> None:
        """Return when the values are there."""
        if self.ready:
            self.ready.synchronize()
        else:
            called(bindings().cudaDeviceSynchronize())

    def wait_on(self, stream: int) -> None:
        """Let later work on a stream (its address) start when the values are there."""
        if self.ready:
            self.ready.precede(stream)
        else:
            called(bindings().cudaDeviceSynchronize())

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.element == "bf16":
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        self.wait()
        typestr = np.dtype(STORAGE[self.element]).str
        return {"shape": self.shape, "typestr": typestr, "data": (self.pointer, False), "version": 3, "strides": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.buffer.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule that keeps the memory.  `stream`: the consumer's, in DLPack's numbering; -1: it needs no waiting.

        Raises BufferError where a copy or another device is asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("the array cannot be copied, or given out on another device")
        if stream == 0:
            raise BufferError("stream 0 is ambiguous: 1 is the default stream")
        if stream != -1:
            self.wait_on(stream or DEFAULT)
        return dlpack.capsule(self.pointer, self.shape, self.element, self.__dlpack_device__(), self.buffer)


def _element(dtype: np.dtype[Any]) -> str:
    if dtype not in _NAMES:
        raise UsageError(f"values are {dtype}", remedy=f"give one of: {', '.join(map(str, _NAMES))}; or name bf16")
    return _NAMES[dtype]


def _check_room(shape: Sequence[int], itemsize: int, nbytes: int) -> None:
    if math.prod(shape) * itemsize > nbytes:
        raise UsageError(
            f"an array of {list(shape)} with {itemsize} bytes each does not fit into {nbytes} bytes",
            remedy="allocate more, or take a smaller shape",
        )
