"""One call of a TensorRT engine at one set of shapes: from NumPy or GPU arrays to the like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cuda.memory import Buffer, DeviceArray, Pinned
from ..cuda.stream import Stream
from ..cuda.views import View, view
from ..engine import Arrays
from .tensorrt_lane import Lane, Worker
from .tensorrt_plan import Plan, Shape, Shapes

#: an array as it is copied from: in host memory, or where it lies on the GPU
Given = npt.NDArray[np.generic] | View


def given(arrays: Arrays, stream: Stream) -> dict[str, Given]:
    """The arrays, those on the GPU as views; `stream` waits for what is queued on them elsewhere."""
    found: dict[str, Given] = {}
    for name, array in arrays.items():
        found[name] = array if isinstance(array, np.ndarray) else view(array, name, stream.handle)
    if any(isinstance(array, View) for array in found.values()):
        stream.wait_for_default()  # arrays without DLPack do not say what is queued on them
    return found


class Slot:
    """Room for one tensor on the GPU; the first host array that passes adds as much page-locked memory."""

    def __init__(self, shape: Shape, dtype: np.dtype[np.generic]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.buffer = Buffer(self.nbytes)
        self._pinned: Pinned | None = None

    @property
    def pointer(self) -> int:
        return self.buffer.pointer

    @property
    def staging(self) -> npt.NDArray[Any]:
        """The page-locked memory as an array; what is queued to or from it is to be waited for."""
        if self._pinned is None:
            self._pinned = Pinned(self.nbytes)
            self._staging = self._pinned.array(self.shape, self.dtype)
        return self._staging

    def put(self, array: Given, stream: Stream) -> None:
        """Queue a copy into the slot; a view is to be kept until that is done."""
        if isinstance(array, View):
            stream.copy(self.pointer, array.pointer, self.nbytes)
        else:
            np.copyto(self.staging, array)
            stream.upload(self.pointer, self.staging)

    def copied(self, stream: Stream) -> DeviceArray:
        """A new array on the GPU, into which a copy of the slot is queued."""
        buffer = Buffer(self.nbytes)
        stream.copy(buffer.pointer, self.pointer, self.nbytes)
        return DeviceArray.at(buffer, self.shape, self.dtype, ready=stream.record())

    def close(self) -> None:
        self.buffer.close()
        if self._pinned is not None:
            del self._staging
            self._pinned.close()
            self._pinned = None


class Call:
    """A lane, and slots for its inputs and outputs."""

    def __init__(self, plan: Plan, worker: Worker, shapes: Shapes) -> None:
        self._worker = worker
        self._lane = Lane(plan, worker, shapes)
        self._inputs = {tensor.name: Slot(shapes[tensor.name], tensor.dtype) for tensor in plan.inputs}
        self._outputs = {tensor.name: Slot(self._lane.shapes[tensor.name], tensor.dtype) for tensor in plan.outputs}
        self._lane.bind({name: slot.pointer for name, slot in {**self._inputs, **self._outputs}.items()})

    def run(self, arrays: Mapping[str, Given]) -> dict[str, Any]:
        """All outputs: DeviceArrays where one array or more is on the GPU, else NumPy."""
        on_gpu = any(isinstance(array, View) for array in arrays.values())
        with self._worker.drained():
            self._load(arrays)
            self._lane.run()
            if on_gpu:
                return {name: slot.copied(self._worker.stream) for name, slot in self._outputs.items()}
            for slot in self._outputs.values():
                self._worker.stream.download(slot.staging, slot.pointer)
        return {name: slot.staging.copy() for name, slot in self._outputs.items()}

    def warm_up(self, arrays: Mapping[str, Given]) -> None:
        """Leave copies of the arrays in the slots, and the graph ready."""
        with self._worker.drained():
            self._load(arrays)
            self._lane.run()
            self._lane.run()

    def again(self) -> None:
        """Run on what lies in the slots, and wait."""
        with self._worker.drained():
            self._lane.run()

    def close(self) -> None:
        """Free everything; nothing may be queued."""
        self._lane.close()
        for slot in (*self._inputs.values(), *self._outputs.values()):
            slot.close()
        del self._lane, self._worker  # whoever holds a prepared call holds no stream

    def _load(self, arrays: Mapping[str, Given]) -> None:
        for name, slot in self._inputs.items():
            slot.put(arrays[name], self._worker.stream)
