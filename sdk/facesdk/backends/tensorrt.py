"""TensorRT and TensorRT-RTX: a plan on an NVIDIA GPU, through one path for all versions from 10.0 on."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ..engine import Arrays, StepCallback, closed_error
from ..errors import EngineError, OutOfMemory
from ..plans import gpu
from ..plans.key import Key
from .tensorrt_call import Call, Given, given
from .tensorrt_lane import worker
from .tensorrt_plan import Plan, Shape, Shapes
from .tensorrt_scan import Loop

# sets of shapes whose buffers and graphs are kept; a system runs each of its engines at one or two
_KEPT = 4

Kept = TypeVar("Kept", Call, Loop)


class TensorRt:
    """A plan, one session per thread that uses it.

    plan, key  the file, and its side-car, which was checked.
    graph      the ONNX file that it was built of: names of free axes, and the weights of a stripped plan.
    device     "tensorrt" or "tensorrt-rtx".
    Raises MissingDependency, ProviderUnavailable, EngineUnreadable, EngineError, OutOfMemory.
    """

    def __init__(self, plan: Path, key: Key, graph: Path, device: str) -> None:
        self.device = device
        self._plan: Plan | None = Plan(plan, key, graph, device)
        self.description = f"{self._plan.library} {key.precision}, {gpu.first_gpu().name}"
        self.inputs, self.outputs = self._plan.inputs, self._plan.outputs
        self._lock = threading.Lock()
        self._local = threading.local()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """All outputs: NumPy, or DeviceArrays where an input is on the GPU."""
        return self._session().run(arrays)

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        return self._session().scan(carry, xs, constants, on_step)

    def prepare(self, arrays: Arrays) -> Callable[[], None]:
        """A call that runs the plan once on copies of these arrays, and returns when it is done; for this thread."""
        return self._session().prepare(arrays)

    def close(self) -> None:
        with self._lock:
            sessions, self._plan = list(self._sessions), None
        for session in sessions:
            session.close()

    def _session(self) -> Session:
        """That of this thread; it goes with the thread."""
        session: Session | None = getattr(self._local, "session", None)
        with self._lock:
            if self._plan is None:
                raise closed_error("the engine")
            if session is None:
                session = self._local.session = Session(self._plan)
                self._sessions.add(session)
            return session


class Session:
    """A plan in one thread.  `close` may come from any thread: it waits for no call, the last one then frees."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._worker = plan, worker()
        self._thread = threading.get_ident()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._prepared: weakref.WeakSet[Call] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._calls, self._closed = 0, False

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """All outputs: NumPy, or DeviceArrays where an input is on the GPU."""
        with self._used():
            views, shapes = self._given(arrays)
            with self._taken(tuple(sorted(shapes.items())), lambda: Call(self._plan, self._worker, shapes)) as call:
                return call.run(views)

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        """The last carry, in NumPy."""
        with self._used():
            views, shapes = self._given({**carry, **constants}, {name: rows.shape[1:] for name, rows in xs.items()})
            key = (tuple(sorted(shapes.items())), frozenset(carry))
            with self._taken(key, lambda: Loop(self._plan, self._worker, shapes, carry.keys())) as loop:
                return loop.run(views, xs, on_step)

    def prepare(self, arrays: Arrays) -> Callable[[], None]:
        """A call that runs the engine once on copies of the arrays, and waits for it; for this thread."""
        with self._used():
            views, shapes = self._given(arrays)
            call = self._made(lambda: Call(self._plan, self._worker, shapes))
            self._prepared.add(call)
            call.warm_up(views)

        def again() -> None:
            if threading.get_ident() != self._thread:
                raise EngineError("a prepared call runs in another thread", remedy="prepare it in each thread")
            with self._used():
                call.again()

        return again

    def close(self) -> None:
        """Free everything, now or when the call that is under way ends."""
        with self._lock:
            first, self._closed = not self._closed, True
            idle = not self._calls
        if first and idle:
            self._free()

    def _given(
        self, arrays: Arrays, others: Shapes = MappingProxyType({})
    ) -> tuple[dict[str, Given], dict[str, Shape]]:
        """The arrays, and the shapes of all inputs; raises EngineInputError for those the plan does not take."""
        views = given(arrays, self._worker.stream)
        shapes = {name: tuple(array.shape) for name, array in views.items()} | dict(others)
        self._plan.check(shapes)
        return views, shapes

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise closed_error("the engine")
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                last = self._closed and not self._calls
            if last:
                self._free()

    @contextlib.contextmanager
    def _taken(self, key: Hashable, make: Callable[[], Kept]) -> Iterator[Kept]:
        """What is kept under `key`, or a new one; taken out meanwhile, as a callback may run the engine again."""
        held = self._kept.pop(key, None)
        if held is None:
            held = self._made(make)
        try:
            yield held
        finally:
            if (spare := self._kept.pop(key, None)) is not None:  # that of a callback
                spare.close()
            self._kept[key] = held
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)[1].close()

    def _made(self, make: Callable[[], Kept]) -> Kept:
        try:
            return make()
        except OutOfMemory:  # what is kept for other shapes was asked for once, and may not be again
            if not self._kept:
                raise
            self._drop()
        return make()

    def _drop(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()

    def _free(self) -> None:
        self._drop()
        for call in self._prepared:
            call.close()
        del self._plan, self._worker
