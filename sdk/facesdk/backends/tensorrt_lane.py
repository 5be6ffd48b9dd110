"""What runs in a thread: execution contexts at fixed places, their CUDA graphs, one stream and one memory for all."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping

from ..cuda.memory import Buffer
from ..cuda.stream import CaptureFailed, Graph, Stream, capture
from ..errors import EngineError
from .tensorrt_plan import Plan, Shape, Shapes
from .tensorrt_words import recorder

log = logging.getLogger("facesdk")

_REMEDY = "give other shapes on the free axes, or build the plan again"
# what a buffer is aligned to, and the least that there is: an engine may need none, and still wants an address
_LEAST = 256
# for engines that know nothing of each other; a thread's worker lives as long as an engine that uses it
_THREAD = threading.local()


class Worker:
    """`stream`: of this thread alone, not that of the process, which would make threads wait for each other."""

    def __init__(self) -> None:
        self.stream = Stream()
        self._arena: Buffer | None = None

    def arena(self, nbytes: int) -> int:
        """The address of that much memory at least; it changes where more is wanted than before."""
        if self._arena is None or self._arena.nbytes < nbytes:
            self.stream.synchronize()
            if self._arena is not None:  # first, so that both need not fit
                self._arena.close()
                self._arena = None
            self._arena = Buffer(max(nbytes, _LEAST))
        return self._arena.pointer

    @contextlib.contextmanager
    def drained(self) -> Iterator[Worker]:
        """The worker; when it is left, by an error too, nothing queued is still to come."""
        try:
            yield self
        finally:
            self.stream.synchronize()


def worker() -> Worker:
    """The worker of this thread; it goes with the last engine that holds it."""
    found: Worker | None = getattr(_THREAD, "worker", lambda: None)()
    if found is None:
        found = Worker()
        _THREAD.worker = weakref.ref(found)
    return found


class Lane:
    """`shapes`: of all outputs.  A graph stands on its context's state: other addresses need a lane of their own."""

    def __init__(self, plan: Plan, worker: Worker, shapes: Shapes) -> None:
        self._plan, self._worker = plan, worker
        self._context = plan.context()
        self._recorder = recorder(plan.trt)
        self._context.error_recorder = self._recorder
        self._arena = self._runs = 0
        self._graph: Graph | None = None
        self.shapes = self._shaped(shapes)
        # nothing where it cannot tell, and then what is enough for all shapes
        self._memory = (plan.shared and int(self._context.update_device_memory_size_for_shapes())) or plan.memory

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Give every input and output its place, once."""
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failure(f"refuses the address of {name}")

    def run(self) -> None:
        """Queue a run: plain the first time, when TensorRT sets itself up, and from the second on as one graph."""
        self._place()
        if self._runs == 1:
            self._plan.settled()
        if self._graph is None and self._runs and self._plan.captures:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.launch(self._worker.stream)
        else:
            self._enqueue()
        self._runs += 1

    def close(self) -> None:
        """Free graph and context; nothing of them may be queued."""
        self._drop_graph()
        self._context = None

    def _shaped(self, shapes: Shapes) -> dict[str, Shape]:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"refuses shape {list(shape)} of input {name}")
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._failure("cannot tell the shapes of its outputs") from error
        if missing:
            raise self._failure(f"is not told the shapes of {', '.join(missing)}")
        found = {tensor.name: tuple(self._context.get_tensor_shape(tensor.name)) for tensor in self._plan.outputs}
        if unknown := [name for name, shape in found.items() if min(shape, default=0) < 0]:
            raise EngineError(
                f"{self._plan.path.name}: the shape of output {', '.join(unknown)} is known only after a run",
                cause="it depends on values, so that no place can be made for it",
                remedy="export the engine without what chooses by value, as NonZero or NonMaxSuppression",
            )
        return found

    def _place(self) -> None:
        """Compute in the thread's memory, wherever that is now."""
        if not self._plan.shared:
            return
        address = self._worker.arena(self._memory)
        if address != self._arena:
            self._drop_graph()
            self._recorder.clear()
            self._context.set_device_memory(address, self._memory)
            if self._recorder.words:  # it answers nothing
                raise self._failure("refuses the memory to compute in")
            self._arena, self._runs = address, 0

    def _captured(self) -> Graph | None:
        try:
            return capture(self._worker.stream, self._enqueue)
        except CaptureFailed as error:
            self._plan.captures -= 1
            if not self._plan.captures:
                reason = error.cause or str(error)
                log.warning("%s: plain launches from now on, no CUDA graph: %s", self._plan.path.name, reason)
            return None

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._worker.stream.handle):
            raise self._failure("failed to run")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _failure(self, fact: str) -> Exception:
        return self._plan.failure(fact, _REMEDY, self._recorder.words)
