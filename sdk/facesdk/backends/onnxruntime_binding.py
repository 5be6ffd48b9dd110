"""What ONNX Runtime reads and writes, bound where the graph runs: host arrays, arrays on a GPU, rows of a series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from ..cuda.memory import Buffer, DeviceArray
from ..cuda.stream import Stream
from ..cuda.views import View, view
from ..engine import Array, Tensor

# what cudaMalloc, and so the arena on top of it, aligns to
_ALIGNMENT = 256


def on_gpu(arrays: Mapping[str, Any]) -> bool:
    """Whether any of the arrays lies on a GPU."""
    return any(not isinstance(array, np.ndarray) for array in arrays.values())


def own_copies(tensors: Sequence[Tensor], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the arrays, on the GPU for those that are there."""
    host = {name: np.array(array, order="C") for name, array in arrays.items() if isinstance(array, np.ndarray)}
    seen = {tensor.name: (lies.pointer, lies.shape, tensor.dtype) for tensor, lies in _views(tensors, arrays)}
    return {**host, **(_gpu_copies(seen) if seen else {})}


class Bound:
    """Arrays bound to a session for one run, or for any number of runs that read and write the same memory.

    Arrays on a GPU are read where they lie, if they are aligned; outputs are allocated by ONNX Runtime, in `memory`,
    in the first run.
    """

    def __init__(self, session: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], memory: str) -> None:
        self._session, self._binding, self._memory = session, session.io_binding(), memory
        self._inputs, self._outputs = inputs, outputs
        self._owners: list[Any] = []
        for tensor in outputs:
            self._binding.bind_output(tensor.name, memory, 0)

    def bind(self, arrays: Mapping[str, Any]) -> Bound:
        """Itself, with these inputs.  What is queued on GPU arrays elsewhere is done on return."""
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                self._binding.bind_cpu_input(name, np.asarray(array, order="C"))
        seen = _views(self._inputs, arrays)
        # kernels read several numbers at once, and a misaligned address ends CUDA for the whole process
        loose = {each.name: (lies.pointer, lies.shape, each.dtype) for each, lies in seen if lies.pointer % _ALIGNMENT}
        copies = _gpu_copies(loose) if loose else {}
        for tensor, lies in seen:
            held = copies.get(tensor.name, lies)
            bind_input(self._binding, tensor.name, self._memory, lies.shape, tensor.dtype, held.pointer)
            self._owners.append(held)
        return self

    def run(self, options: Any = None) -> None:
        """Run once; the device is synchronised on return."""
        self._session.run_with_iobinding(self._binding, options)

    def host_outputs(self) -> dict[str, Array]:
        """Copies of the outputs in host memory."""
        names = [tensor.name for tensor in self._outputs]
        return dict(zip(names, self._binding.copy_outputs_to_cpu(), strict=True))

    def gpu_outputs(self) -> dict[str, Any]:
        """Copies of the outputs as DeviceArrays.

        Copies, as the arena would give freed outputs to its next run while another stream may still read them.
        """
        values = self._binding.get_outputs()
        lies = [(value.data_ptr(), tuple(value.shape())) for value in values]
        return _gpu_copies({t.name: (*place, t.dtype) for t, place in zip(self._outputs, lies, strict=True)})


def bind_input(
    binding: Any, name: str, memory: str, shape: Sequence[int], dtype: np.dtype[np.generic], pointer: int
) -> None:
    """Bind an input to an address, which must stay valid as long as the binding is used."""
    binding.bind_input(name, memory, 0, dtype.type, list(shape), pointer)


def _views(tensors: Sequence[Tensor], arrays: Mapping[str, Any]) -> list[tuple[Tensor, View]]:
    """Where the arrays on a GPU lie.  ONNX Runtime knows its own stream alone: what is queued on them is done now."""
    given = [tensor for tensor in tensors if not isinstance(arrays[tensor.name], np.ndarray)]
    if not given:
        return []
    stream = Stream()
    try:
        views = [(tensor, view(arrays[tensor.name], tensor.name, stream.handle)) for tensor in given]
        stream.wait_for_default()
        stream.synchronize()
    finally:
        stream.close()
    return views


def _gpu_copies(sources: Mapping[str, tuple[int, tuple[int, ...], np.dtype[np.generic]]]) -> dict[str, Any]:
    """DeviceArrays with what lies at (address, shape, dtype); the copies are done on return."""
    stream = Stream()
    try:
        copies = {}
        for name, (pointer, shape, dtype) in sources.items():
            buffer = Buffer(math.prod(shape) * dtype.itemsize)
            stream.copy(buffer.pointer, pointer, buffer.nbytes)
            copies[name] = DeviceArray.at(buffer, shape, dtype, ready=stream.record())
        stream.synchronize()
        return copies
    finally:
        stream.close()


def upload(array: Array, memory: str) -> Any:
    """An OrtValue with the array's values.  In host memory it is the array itself: give one that nobody changes."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), memory, 0)


class Rows:
    """A series whose rows are bound one after the other: uploaded whole, or each to the same place (`fixed`)."""

    def __init__(self, series: Array, memory: str, *, fixed: bool = False) -> None:
        self._shape, self._dtype, self._memory, self._fixed = series.shape[1:], series.dtype, memory, fixed
        self._host = _aligned_rows(series)
        self._value = upload(self._host[:1].copy() if fixed else self._host, memory)

    def replace(self, series: Array) -> None:
        """Take another series of the same shape, to the same place."""
        self._host = _aligned_rows(series)

    def bind(self, binding: Any, name: str, step: int) -> None:
        """Bind row `step`."""
        if self._fixed:
            self._value.update_inplace(self._host[step : step + 1])
        pointer = self._value.data_ptr() + (0 if self._fixed else step * self._host.shape[1])
        bind_input(binding, name, self._memory, self._shape, self._dtype, pointer)


def _aligned_rows(series: Array) -> Array:
    """(steps, bytes): each row's bytes, padded to the alignment."""
    rows = np.asarray(series, order="C").reshape(len(series), -1).view(np.uint8)
    aligned = np.zeros((len(rows), max(-(-rows.shape[1] // _ALIGNMENT), 1) * _ALIGNMENT), np.uint8)
    aligned[:, : rows.shape[1]] = rows
    return aligned
