"""An engine that Triton runs: every call is a request to another model of the same server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from facesdk.cuda.memory import DeviceArray
from facesdk.engine import NEXT, StepCallback, Tensor, closed_error, prepared
from facesdk.errors import EngineError, MissingDependency
from facesdk.graph import Graph, Value

Array = npt.NDArray[Any]
Arrays = Mapping[str, Any]


class TritonBackend:
    """The backend of one engine.  Its calls are allowed while the server executes the pipeline, and not before.

    pb_utils  Triton's module triton_python_backend_utils.   model  the engine's name in the server.
    batch     rows of one call at most; 0: the graph has its own batch axis.
    gpu       where a scan's carry stays; None: on the processor.
    """

    def __init__(self, pb_utils: Any, model: str, batch: int, graph: Graph, gpu: int | None) -> None:
        self.device = "cpu" if gpu is None else "cuda"
        self.description = f"Triton's model {model}"
        self.inputs, self.outputs = _tensors(graph.inputs), _tensors(graph.outputs)
        self._pb, self._model, self._batch, self._open = pb_utils, model, batch, True
        self._host = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        self._resident = self._host if gpu is None else pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU, gpu)
        self._ranks = {tensor.name: len(tensor.shape) for tensor in self.outputs}

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """All outputs; more rows than the model takes go in several requests."""
        most, names = self._batch, list(self._ranks)
        rows = len(next(iter(arrays.values()))) if most else 0
        starts = range(0, rows, most) if rows > most else (None,)
        parts = [
            self._request(arrays if first is None else _rows(arrays, first, most), names, self._host)
            for first in starts
        ]
        made = [{name: self._received(name, part[name]) for name in names} for part in parts]
        return made[0] if len(made) == 1 else {name: np.concatenate([part[name] for part in made]) for name in names}

    def prepare(self, arrays: Arrays) -> Callable[[], None]:
        """A call with these arrays."""
        return prepared(self.run, arrays)

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        """The carry after a request for every row; on a GPU it stays there, and the constants are sent there once."""
        fixed = {name: self._held(array) for name, array in constants.items()}
        moving: dict[str, Any] = dict(carry)
        made: dict[str, Any] = {}
        names, steps = [NEXT + name for name in carry], len(next(iter(xs.values())))
        for step in range(steps):
            rows = {name: series[step, ...] for name, series in xs.items()}
            where = self._host if step + 1 == steps else self._resident
            made = self._request({**fixed, **moving, **rows}, names, where)
            moving = {name: made[NEXT + name] for name in carry}
            on_step(step + 1, steps)
        return {name: self._received(NEXT + name, made[NEXT + name]) for name in carry}

    def close(self) -> None:
        """Later calls raise EngineClosed; the server keeps its model."""
        self._open = False

    # -- requests ---------------------------------------------------------------------------------------------

    def _request(self, arrays: Arrays, names: Sequence[str], memory: Any) -> dict[str, Any]:
        """Triton's tensors by name; raises EngineError with the server's words."""
        if not self._open:
            raise closed_error(self.description)
        request = self._pb.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(names),
            inputs=[self._tensor(name, array) for name, array in arrays.items()],
            preferred_memory=memory,
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(
                f"{self.description} failed",
                cause=response.error().message(),
                remedy="look at the server's log: whether the model is loaded, and which shapes its plan takes",
            )
        return {tensor.name(): tensor for tensor in response.output_tensors()}

    def _tensor(self, name: str, value: Any) -> Any:
        """Triton's tensor of an array of ours, or of one of its own under another name."""
        if isinstance(value, self._pb.Tensor):
            return self._pb.Tensor.from_dlpack(name, value.to_dlpack())
        if isinstance(value, DeviceArray):
            return self._pb.Tensor.from_dlpack(name, value)
        return self._pb.Tensor(name, self._with_axes(np.asarray(value, order="C")))

    def _with_axes(self, array: Array) -> Array:
        """The array as Triton wants it: at least one axis, behind the batch axis too where that is the server's."""
        return array.reshape(*array.shape, 1) if array.ndim == bool(self._batch) else array

    def _received(self, name: str, tensor: Any) -> Array:
        """A copy of what the server gave, without the axis that it added."""
        values = np.array(tensor.as_numpy())
        return values.reshape(values.shape[: self._ranks[name]])

    def _held(self, array: Array) -> Any:
        """The array in the GPU's memory where the carry is; itself where that is not, or cuda-python is not there."""
        if self.device == "cpu":
            return array
        try:
            return DeviceArray.of(self._with_axes(np.asarray(array, order="C")))
        except MissingDependency:
            return array


def _tensors(values: Sequence[Value]) -> tuple[Tensor, ...]:
    return tuple(Tensor(value.name, value.shape, np.dtype(value.type)) for value in values)


def _rows(arrays: Arrays, first: int, count: int) -> dict[str, Any]:
    return {name: array[first : first + count] for name, array in arrays.items()}
