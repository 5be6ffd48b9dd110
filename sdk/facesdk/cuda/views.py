"""Arrays of other packages on a GPU, seen through DLPack or `__cuda_array_interface__`; nothing is copied."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

from ..errors import UsageError
from .memory import DeviceArray

_CPU, _CUDA = 1, {2, 13}  # DLDeviceType: kDLCPU; kDLCUDA and kDLCUDAManaged
# (DLDataTypeCode, bits) -> name; a bool is one byte, 0 or 1
_DLPACK = {(2, 16): "fp16", (4, 16): "bf16", (2, 32): "fp32", (1, 8): "uint8", (6, 8): "uint8"}
_TYPESTR = {"<f2": "fp16", "<f4": "fp32", "|u1": "uint8", "|b1": "uint8"}
# a prototype of its own: the function object of ctypes.pythonapi is shared with every other package
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "uint8": 1}


@dataclasses.dataclass(frozen=True)
class View:
    """Where an array lies: address, shape, strides in elements.  `owner` keeps the memory alive."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element: str
    owner: Any = dataclasses.field(repr=False)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, which a DLManagedTensor begins with; its nested structs are laid out flat."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def view(array: Any, name: str, stream: int = 0) -> View:
    """Where a GPU array lies; work that is queued on it elsewhere is waited for by `stream` (0: the default stream).

    Raises UsageError for arrays that are not on a GPU, or of a dtype that no kernel takes.
    """
    if isinstance(array, DeviceArray):
        return View(array.pointer, array.shape, _packed(array.shape), array.element, array)
    if hasattr(array, "__dlpack_device__"):
        if int(array.__dlpack_device__()[0]) not in _CUDA:
            raise UsageError(
                f"{name} is not on a CUDA device", remedy="move it there, or give NumPy arrays and get one back"
            )
        # in DLPack's numbering 1 is the default stream, and 0 is not allowed
        return read_capsule(array.__dlpack__(stream=stream or 1), name)
    if hasattr(array, "__cuda_array_interface__"):
        return _from_interface(array, name)
    raise UsageError(
        f"{name} is a {type(array).__name__}",
        remedy="give NumPy arrays, or arrays with __dlpack__ or __cuda_array_interface__",
    )


def read_capsule(capsule: Any, name: str) -> View:
    """The view of a "dltensor" capsule, which stays its owner: it is never marked as used."""
    tensor = _Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    element = _DLPACK.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if element is None:
        raise _dtype_error(name, f"of DLPack's type code {tensor.code} with {tensor.bits} bits")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _packed(shape)
    return View((tensor.data or 0) + tensor.byte_offset, shape, strides, element, capsule)


def _from_interface(array: Any, name: str) -> View:
    facts = array.__cuda_array_interface__
    element = _TYPESTR.get(facts["typestr"])
    if element is None:
        raise _dtype_error(name, f"of type {facts['typestr']}")
    shape = tuple(facts["shape"])
    steps = facts.get("strides")
    strides = tuple(step // _BYTES[element] for step in steps) if steps else _packed(shape)
    return View(facts["data"][0], shape, strides, element, array)


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _dtype_error(name: str, fact: str) -> UsageError:
    return UsageError(
        f"{name} is {fact}",
        remedy="give float16 or bfloat16; weights of the second set in float32, regions and subjects in uint8",
    )
