"""From arrays on a GPU to the C structure of the kernel library, and its launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cuda.memory import DeviceArray
from ..cuda.views import View, view
from ..errors import UsageError, one_of
from .library import DTYPES, HEAD_DIMS, Arguments, Library, Tensor
from .operands import ELEMENTS, Operands, sizes_of

# a bool is one byte, 0 or 1
_AS = {"bool": "uint8"}


def launch(x: Operands[Any], scale: float | None, out: Any, stream: int, kernels: Library) -> Any:
    """`out`, or a new array of the kind of q, that the kernel writes once the work queued on `stream` is done."""
    views = {name: view(array, name, stream) for name, array in x.given().items()}
    sizes = sizes_of({name: seen.shape for name, seen in views.items()})
    if views["q"].element not in DTYPES:
        raise UsageError(f"q is {views['q'].element}", remedy="give float16 or bfloat16")
    if sizes["dim"] not in HEAD_DIMS:
        raise one_of("the head dim", sizes["dim"], [str(dim) for dim in HEAD_DIMS])
    out = _empty_like(x.q, views["q"]) if out is None else out
    views["out"] = view(out, "out", stream)
    sizes_of({name: seen.shape for name, seen in views.items()})
    for name, seen in views.items():
        _check_view(name, seen, views["q"].element)
    arguments = arguments_of(views, sizes, sizes["dim"] ** -0.5 if scale is None else scale)
    kernels.check(arguments)
    kernels.forward(arguments, stream)
    return out


def arguments_of(views: Mapping[str, View], sizes: Mapping[str, int], scale: float) -> Arguments:
    """The C structure for views that fit together; `sizes` as `sizes_of` gives them."""
    names = ("batch", "heads", "dim", "queries", "keys", "keys2")
    arguments = Arguments(**{name: sizes.get(name, 0) for name in names}, dtype=DTYPES[views["q"].element], scale=scale)
    for name, seen in views.items():
        if len(seen.shape) == 4:
            batch, row, head = (_stride(seen, axis) for axis in range(3))
            setattr(arguments, name, Tensor(seen.pointer, batch, head, row))
        else:
            setattr(arguments, name, seen.pointer)
    return arguments


def address_of(stream: Any) -> int:
    """The address of a stream: an integer, `__cuda_stream__`, or torch's and CuPy's attribute; None is the default."""
    if stream is None or isinstance(stream, int):
        return stream or 0
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise UsageError(f"stream is a {type(stream).__name__}", remedy="give a torch or CuPy stream, or its address")


def _check_view(name: str, seen: View, element: str) -> None:
    held, want = _AS.get(seen.element, seen.element), ELEMENTS.get(name, element)
    if held != want:
        raise UsageError(f"{name} is {seen.element}, not {want}", remedy="convert it")
    rank = len(seen.shape)
    if not seen.is_packed((3,) if rank == 4 else None):
        what = "its last axis" if rank == 4 else "it"
        raise UsageError(f"{name} is not contiguous", cause=f"strides {seen.strides}", remedy=f"make {what} contiguous")
    strides = [_stride(seen, axis) for axis in range(3)] if rank == 4 else []
    if name not in ELEMENTS and (seen.pointer % 16 or any(stride < 0 or stride % 8 for stride in strides)):
        raise UsageError(
            f"{name} begins at {seen.pointer:#x} with strides {seen.strides}",
            cause="rows are read 16 bytes at a time",
            remedy="give an address that is a multiple of 16 and strides that are multiples of 8, or a contiguous copy",
        )


def _stride(seen: View, axis: int) -> int:
    """In elements; 0 for an axis of one element, whose stride means nothing and may be anything."""
    return seen.strides[axis] if seen.shape[axis] > 1 else 0


def _empty_like(array: Any, seen: View) -> Any:
    """A new packed array of the same kind, shape and dtype, on the GPU."""
    if hasattr(array, "new_empty"):  # torch
        return array.new_empty(seen.shape)
    if hasattr(array, "__array_function__"):  # CuPy
        return np.empty_like(array, order="C")
    return DeviceArray(seen.shape, seen.element)
