"""One ONNX Runtime session as a backend: run, prepare and scan with arrays bound where the graph runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort

from ..engine import Array, Arrays, StepCallback, Tensor, closed_error, run_error
from ..errors import EngineError, EngineUnreadable, FaceSDKError
from .onnxruntime_binding import Bound, on_gpu, own_copies
from .onnxruntime_loop import Loop, form_of
from .onnxruntime_open import broken, full

_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}  # fmt: skip

log = logging.getLogger("facesdk")


class SessionBackend:
    """A session, safe to run from several threads; `memory` is where its arrays lie, in ONNX Runtime's words.

    plain   None, or what opens the session again without CUDA graphs, where this one was opened with them.
    launch  why `prepare` has no CUDA graph, logged there; empty where there is nothing to say.
    """

    def __init__(
        self,
        session: Any,
        device: str,
        description: str,
        *,
        memory: str,
        plain: Callable[[], Any] | None = None,
        launch: str = "",
    ) -> None:
        self.device, self.description = device, description
        self.inputs = tuple(map(_tensor, session.get_inputs()))
        self.outputs = tuple(map(_tensor, session.get_outputs()))
        self._session, self._memory, self._launch = session, memory, launch
        self._plain, self._lock = plain, threading.Lock()
        # a session whose capture failed is kept: to destroy it can end the process (onnxruntime pull request 32081)
        self._abandoned: Any = None
        self._graph_ids, self._local = itertools.count(1), threading.local()

    def run(self, arrays: Arrays) -> dict[str, Array]:
        options, session = self._without_graph(), self._opened()  # in this order: see _give_up_graphs
        with run_errors(self.description):
            if self.device == "cpu":
                names = [tensor.name for tensor in self.outputs]
                return dict(zip(names, session.run(names, arrays), strict=True))
            bound = Bound(session, self.inputs, self.outputs, self._memory).bind(arrays)
            bound.run(options)
            return bound.gpu_outputs() if on_gpu(arrays) else bound.host_outputs()

    def prepare(self, arrays: Arrays) -> Callable[[], None]:
        """A run on copies of these arrays, without transfers; not for two threads at once."""
        if self._plain is not None:
            try:
                return self._prepared(arrays, _graph(next(self._graph_ids)))
            except EngineError as error:
                self._give_up_graphs(error)
        if self._launch:
            log.info("plain launches: %s", self._launch)
        return self._prepared(arrays, self._without_graph())

    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]:
        steps = len(next(iter(xs.values())))
        loop, graphs = self._loop(carry, xs, constants)
        for step in range(steps):
            with run_errors(self.description):
                loop.step(step, graphs[step % 2])
            on_step(step + 1, steps)
        with run_errors(self.description):
            return loop.carry(steps)

    def close(self) -> None:
        self._session = None  # a call that is under way in another thread holds its own reference
        self._local = threading.local()

    def _opened(self) -> Any:
        session = self._session
        if session is None:
            raise closed_error("the engine")
        return session

    def _prepared(self, arrays: Arrays, options: Any) -> Callable[[], None]:
        session = self._opened()
        with run_errors(self.description):
            copies = own_copies(self.inputs, arrays)
            bound = Bound(session, self.inputs, self.outputs, self._memory).bind(copies)
            bound.run(options)  # allocates the outputs, and captures

        def call() -> None:
            with run_errors(self.description):
                bound.run(options)

        return call

    # -- CUDA graphs: each is bound to its arrays' addresses, and to the thread that captured it ------------------

    def _loop(self, carry: Arrays, xs: Arrays, constants: Arrays) -> tuple[Loop, tuple[Any, Any]]:
        """The buffers of a scan, and the run options of even and odd steps."""
        if self._plain is not None:
            try:
                with run_errors(self.description):
                    return self._captured_loop(carry, xs, constants)
            except EngineError as error:
                self._give_up_graphs(error)
        options = self._without_graph()
        with run_errors(self.description):
            return Loop(self._opened(), self._memory, carry, xs, constants), (options, options)

    def _captured_loop(self, carry: Arrays, xs: Arrays, constants: Arrays) -> tuple[Loop, tuple[Any, Any]]:
        """The buffers of the thread's last scan, where they fit; else new ones, captured in both directions."""
        kept: tuple[Loop, tuple[Any, Any]] | None = getattr(self._local, "loop", None)
        if kept is None or kept[0].form != form_of(carry, xs, constants):
            loop = Loop(self._opened(), self._memory, carry, xs, constants, fixed=True)
            kept = loop, (_graph(next(self._graph_ids)), _graph(next(self._graph_ids)))
            for step, options in enumerate(kept[1][: len(next(iter(xs.values())))]):
                loop.step(step, options)
            self._local.loop = kept
        kept[0].replace(carry, xs, constants)
        return kept

    def _without_graph(self) -> Any:
        return None if self._plain is None else _graph(-1)  # -1: neither captured nor replayed

    def _give_up_graphs(self, error: EngineError) -> None:
        with self._lock:
            if self._plain is None or self._session is None:
                return
            log.info("plain launches: ONNX Runtime captured no CUDA graph: %s", error.cause or error.fact)
            # the session before the mark: without options, one with graphs would capture the run
            self._abandoned, self._session = self._session, self._plain()
            self._plain = None


@contextlib.contextmanager
def run_errors(description: str) -> Iterator[None]:
    """Turn whatever ONNX Runtime raises into EngineError, or OutOfMemory."""
    try:
        yield
    except FaceSDKError:
        raise
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        raise full(description, error) or broken(description, error) or run_error(description, error) from error


def _graph(number: int) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _tensor(value: Any) -> Tensor:
    if value.type not in _DTYPES:
        raise EngineUnreadable(
            f"tensor {value.name} has type {value.type}", remedy="export it with tensors of plain types"
        )
    return Tensor(value.name, tuple(value.shape), np.dtype(_DTYPES[value.type]))
