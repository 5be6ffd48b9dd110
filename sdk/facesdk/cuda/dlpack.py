"""DLPack capsules: made for arrays on the GPU, and read.

NumPy makes the capsule, of an array that only looks at the address, so that both destructors, of capsules that were
taken over and of those that were not, are NumPy's own; then device and type are written into its DLTensor.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

#: DLDeviceType: kDLCPU, kDLCUDA, kDLCUDAManaged
CPU, CUDA, CUDA_MANAGED = 1, 2, 13
# element -> (DLDataTypeCode, bits)
_TYPES = {
    "fp16": (2, 16), "bf16": (4, 16), "fp32": (2, 32), "fp64": (2, 64), "uint8": (1, 8), "int8": (0, 8),
    "int32": (0, 32), "int64": (0, 64), "bool": (6, 8),
}  # fmt: skip
_ELEMENTS = {type_: element for element, type_ in _TYPES.items()}
# a prototype of its own: the function object of ctypes.pythonapi is shared with every other package
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, which a DLManagedTensor begins with; its nested structs are laid out flat."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip

    @classmethod
    def of(cls, capsule: Any) -> Tensor:
        """The structure inside a "dltensor" capsule; it lives as long as the capsule is not taken over."""
        return cls.from_address(_capsule_pointer(capsule, b"dltensor"))

    @property
    def element(self) -> str | None:
        """None for types that no kernel or engine takes."""
        return _ELEMENTS.get((self.code, self.bits)) if self.lanes == 1 else None


@dataclasses.dataclass(frozen=True)
class _Place:
    """What NumPy asks for an address; the array it makes keeps `owner`."""

    __array_interface__: dict[str, Any]
    owner: Any


def at_address(pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike, owner: Any) -> npt.NDArray[Any]:
    """A packed array over memory that `owner` keeps; making it reads nothing there."""
    facts = {"data": (pointer, False), "shape": shape, "typestr": np.dtype(dtype).str, "version": 3}
    return np.asarray(_Place(facts, owner))


def capsule(pointer: int, shape: tuple[int, ...], element: str, device: tuple[int, int], owner: Any) -> Any:
    """A "dltensor" capsule of packed memory that keeps `owner`.  device: (DLDeviceType, number)."""
    code, bits = _TYPES[element]
    made = at_address(pointer, shape, f"u{bits // 8}", owner).__dlpack__()
    tensor = Tensor.of(made)
    tensor.code, tensor.bits = code, bits
    tensor.device_type, tensor.device_id = device
    return made
