"""Arrays of other packages on a GPU, seen through DLPack or `__cuda_array_interface__`; nothing is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from .dlpack import CUDA, CUDA_MANAGED, Tensor
from .memory import STORAGE, DeviceArray
from .runtime import bindings, called
from .stream import DEFAULT, Event

_TYPESTR = {np.dtype(dtype).str: name for name, dtype in STORAGE.items() if name != "bf16"}
_UNORDERED = -1


@dataclasses.dataclass(frozen=True)
class View:
    """Where an array lies: address, shape, strides in elements.  `owner` keeps the memory alive."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element: str
    owner: Any = dataclasses.field(repr=False)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """None for bf16, which NumPy does not have."""
        return None if self.element == "bf16" else np.dtype(STORAGE[self.element])

    def is_packed(self, axes: Sequence[int] | None = None) -> bool:
        """Whether these axes, or all, lie in C order without gaps."""
        step = 1
        for axis in reversed(range(len(self.shape)) if axes is None else axes):
            if self.shape[axis] > 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True


def view(array: Any, name: str, stream: int = 0) -> View:
    """Where a GPU array lies; work that is queued on it elsewhere is waited for by `stream`.

    stream  an address; 0: the default stream; -1: nothing waits.  A DeviceArray without `ready` is waited for by none:
            who queued work on it orders the streams.
    Raises UsageError for arrays that are not on a GPU, or of a dtype that no kernel or engine takes.
    """
    if isinstance(array, DeviceArray):
        if array.ready and stream != _UNORDERED:
            array.wait_on(stream or DEFAULT)
        return View(array.pointer, array.shape, _packed(array.shape), array.element, array)
    if hasattr(array, "__dlpack_device__"):
        _check_device(name, *array.__dlpack_device__())
        # in DLPack's numbering 1 is the default stream, and 0 is not allowed
        return read_capsule(array.__dlpack__(stream=stream or DEFAULT), name)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, name, stream or DEFAULT)
    raise UsageError(
        f"{name} is a {type(array).__name__}",
        remedy="give NumPy arrays, or arrays with __dlpack__ or __cuda_array_interface__",
    )


def read_capsule(capsule: Any, name: str) -> View:
    """The view of a "dltensor" capsule, which stays its owner: it is never marked as used."""
    tensor = Tensor.of(capsule)
    if tensor.element is None:
        raise _dtype_error(name, f"of DLPack's type code {tensor.code} with {tensor.bits} bits")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _packed(shape)
    return View((tensor.data or 0) + tensor.byte_offset, shape, strides, tensor.element, capsule)


def _check_device(name: str, kind: int, number: int) -> None:
    if int(kind) not in (CUDA, CUDA_MANAGED):
        raise UsageError(
            f"{name} is not on a CUDA device", remedy="move it there, or give NumPy arrays and get one back"
        )
    # a kernel that reads another GPU's memory fails, and ends CUDA for the whole process; for the first, which is the
    # current one unless somebody changed that, cuda-python is not asked: other packages' arrays need none
    if int(kind) == CUDA and number and number != (current := int(called(bindings().cudaGetDevice()))):
        raise UsageError(f"{name} is on CUDA device {number}, and device {current} is in use", remedy="move it there")


def _from_interface(array: Any, name: str, stream: int) -> View:
    facts = array.__cuda_array_interface__
    element = _TYPESTR.get(facts["typestr"])
    if element is None:
        raise _dtype_error(name, f"of type {facts['typestr']}")
    theirs = facts.get("stream")  # in the same numbering as DLPack's; None: nothing to wait for
    if theirs is not None and stream not in (_UNORDERED, theirs):
        Event(theirs).precede(stream)
    shape = tuple(facts["shape"])
    steps, size = facts.get("strides"), np.dtype(STORAGE[element]).itemsize
    strides = tuple(step // size for step in steps) if steps else _packed(shape)
    return View(facts["data"][0], shape, strides, element, array)


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _dtype_error(name: str, fact: str) -> UsageError:
    return UsageError(f"{name} is {fact}", remedy=f"convert it to one of: {', '.join(STORAGE)}")
