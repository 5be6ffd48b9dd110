"""The loop of a scan: everything lies on the GPU, and the processor only launches one graph per step.

A graph per step, not one of the whole loop: a launch takes microseconds, and the loop can be followed and stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np

from ..cuda.memory import Buffer
from ..engine import NEXT, Array, Arrays, StepCallback, Tensor
from ..errors import EngineError
from .tensorrt_call import Given, Slot
from .tensorrt_lane import Lane, Worker
from .tensorrt_plan import Plan, Shapes

# bytes that the rows of a series are aligned to, as CUDA aligns what it allocates
_ALIGNMENT = 256


class Loop:
    """Two places for the carry, and a lane each way between them; one place for everything else."""

    def __init__(self, plan: Plan, worker: Worker, shapes: Shapes, carried: Set[str]) -> None:
        self._worker = worker
        self._lanes = (Lane(plan, worker, shapes), Lane(plan, worker, shapes))
        made = self._lanes[0].shapes
        _check_carry(plan, shapes, made, carried)
        self._front, self._back = (_slots(plan.inputs, shapes, carried) for _ in range(2))
        self._inputs = _slots(plan.inputs, shapes, shapes.keys() - carried)
        self._others = _slots(plan.outputs, made, made.keys() - {NEXT + name for name in carried})
        self._series: dict[str, Buffer] = {}
        self._rows: dict[str, Array] = {}  # what copies are queued of
        for lane, first, second in zip(self._lanes, (self._front, self._back), (self._back, self._front), strict=True):
            fed = {NEXT + name: slot for name, slot in second.items()}
            slots = {**self._inputs, **self._others, **first, **fed}
            lane.bind({name: slot.pointer for name, slot in slots.items()})

    def run(self, arrays: Mapping[str, Given], xs: Arrays, on_step: StepCallback) -> dict[str, Array]:
        """The last carry; `arrays`: the first one, and the constants."""
        stream, steps = self._worker.stream, len(next(iter(xs.values())))
        with self._worker.drained():
            for name, array in arrays.items():
                (self._front.get(name) or self._inputs[name]).put(array, stream)
            pitches = {name: self._upload(name, rows) for name, rows in xs.items()}
            self._steps(pitches, steps, on_step)
            last = self._back if steps % 2 else self._front
            for slot in last.values():
                stream.download(slot.staging, slot.pointer)
        self._rows.clear()
        return {name: slot.staging.copy() for name, slot in last.items()}

    def close(self) -> None:
        """Free everything; nothing may be queued."""
        for lane in self._lanes:
            lane.close()
        for slots in (self._front, self._back, self._inputs, self._others):
            for slot in slots.values():
                slot.close()
        for buffer in self._series.values():
            buffer.close()

    def _steps(self, pitches: Mapping[str, int], steps: int, on_step: StepCallback) -> None:
        """Run every step; each is told of once it is done, while the next one runs."""
        before = None
        for step in range(steps):
            for name, pitch in pitches.items():
                slot = self._inputs[name]
                self._worker.stream.copy(slot.pointer, self._series[name].pointer + step * pitch, slot.nbytes)
            self._lanes[step % 2].run()
            done = self._worker.stream.record()
            if before is not None:
                before.synchronize()
                on_step(step, steps)
            before = done
        if before is not None:
            before.synchronize()
        on_step(steps, steps)

    def _upload(self, name: str, series: Array) -> int:
        """The bytes from row to row of a series, after queueing its copy to the GPU."""
        nbytes = self._inputs[name].nbytes
        pitch = max(nbytes + -nbytes % _ALIGNMENT, _ALIGNMENT)
        padded = np.zeros((len(series), pitch), np.uint8)
        padded[:, :nbytes] = np.ascontiguousarray(series).reshape(len(series), -1).view(np.uint8)
        held = self._series.get(name)
        if held is None or held.nbytes < padded.nbytes:
            if held is not None:
                held.close()
            self._series[name] = Buffer(padded.nbytes)
        self._rows[name] = padded
        self._worker.stream.upload(self._series[name].pointer, padded)
        return pitch


def _slots(tensors: Iterable[Tensor], shapes: Shapes, names: Set[str]) -> dict[str, Slot]:
    return {tensor.name: Slot(shapes[tensor.name], tensor.dtype) for tensor in tensors if tensor.name in names}


def _check_carry(plan: Plan, shapes: Shapes, made: Shapes, carried: Set[str]) -> None:
    for name in carried:
        if made[NEXT + name] != shapes[name]:
            raise EngineError(
                f"{plan.path.name}: output {NEXT}{name} has shape {list(made[NEXT + name])}, and cannot feed {name}",
                cause=f"input {name} has shape {list(shapes[name])}",
                remedy="carry what keeps its shape",
            )
