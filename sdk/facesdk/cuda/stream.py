"""The order of work on the GPU: streams, events on them, and whole runs captured as CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from ..errors import EngineClosed, FaceSDKError, UsageError
from .runtime import bindings, called

Array = npt.NDArray[Any]
#: the legacy default stream, which other packages use where none is named
DEFAULT = 1
# the flags of cudaEventCreateWithFlags and cudaGraphInstantiateWithFlags that are wanted: none
_PLAIN = 0


class CaptureFailed(Exception):
    """Work could not be recorded as a CUDA graph, for `cause`.

    No error that users see: who captures goes on and launches the work piece by piece, with the same results.
    """

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


class Stream:
    """A queue of work on the GPU that waits for no other, not even for the default stream.

    upload, download and copy return at once; what they touch must live, and stay as it is, until `synchronize`.
    NumPy arrays of `Pinned` memory are copied while the processor goes on; others are first copied into CUDA's
    own staging memory, which holds the caller up, and cannot be captured in a graph.
    """

    def __init__(self) -> None:
        cuda = bindings()
        self._address = int(called(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))
        self._lock = threading.RLock()  # held in every call, so that no thread destroys what another one uses
        self._end = weakref.finalize(self, _end, cuda, self._address)
        self._end.atexit = False  # the process takes its streams with it

    @property
    def handle(self) -> int:
        """The stream's address.  Raises EngineClosed after `close()`."""
        if not self._end.alive:
            raise EngineClosed("a CUDA stream was used after it was closed", remedy="open the engine again")
        return self._address

    def upload(self, pointer: int, array: Array) -> None:
        """Queue a copy of an array, C-contiguous, to device memory."""
        self._copy(pointer, _address(array), array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: Array, pointer: int) -> None:
        """Queue a copy of device memory into an array, C-contiguous; it holds it after `synchronize`."""
        if not array.flags.writeable:
            raise UsageError("the array to download to is read-only", remedy="give a writeable one")
        self._copy(_address(array), pointer, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, to_pointer: int, from_pointer: int, nbytes: int) -> None:
        """Queue a copy within device memory."""
        self._copy(to_pointer, from_pointer, nbytes, "cudaMemcpyDeviceToDevice")

    def record(self) -> Event:
        """A mark behind the work that is queued now."""
        with self._lock:
            return Event(self.handle)

    def wait(self, event: Event) -> None:
        """Let later work start after the event; the processor does not wait."""
        with self._lock:
            event.precede(self.handle)

    def wait_for_default(self) -> None:
        """Let later work start after all that is queued on the legacy default stream now."""
        self.wait(Event(DEFAULT))

    def synchronize(self) -> None:
        """Return when all work is done.  Raises EngineError where a piece of it failed."""
        with self._lock:
            called(bindings().cudaStreamSynchronize(self.handle))

    def close(self) -> None:
        """Wait for the work and free the stream; again, it does nothing."""
        with self._lock:
            self._end()

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The handle, which no other thread can use or destroy meanwhile."""
        with self._lock:
            yield self.handle

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        cuda = bindings()
        if nbytes:
            with self._lock:
                called(cuda.cudaMemcpyAsync(target, source, nbytes, getattr(cuda.cudaMemcpyKind, kind), self.handle))


class Event:
    """A mark in a stream (its address), behind the work that was queued there when it was made."""

    def __init__(self, stream: int) -> None:
        cuda = bindings()
        self.handle = int(called(cuda.cudaEventCreateWithFlags(_PLAIN)))
        weakref.finalize(self, cuda.cudaEventDestroy, self.handle).atexit = False
        called(cuda.cudaEventRecord(self.handle, stream))

    def precede(self, stream: int) -> None:
        """Let later work on a stream (its address) start after the mark."""
        called(bindings().cudaStreamWaitEvent(stream, self.handle, _PLAIN))

    def synchronize(self) -> None:
        """Return when the work before it is done."""
        called(bindings().cudaEventSynchronize(self.handle))

    def elapsed_ms(self, earlier: Event) -> float:
        """Milliseconds on the GPU between two marks that were both passed."""
        return float(called(bindings().cudaEventElapsedTime(earlier.handle, self.handle)))


class Graph:
    """Recorded work that is launched as one; the memory it names must live, at the same addresses."""

    def __init__(self, executable: int) -> None:
        self._executable = executable
        self._end = weakref.finalize(self, bindings().cudaGraphExecDestroy, executable)
        self._end.atexit = False

    def launch(self, stream: Stream) -> None:
        """Queue all of it on a stream.  Raises EngineClosed after `close()`."""
        if not self._end.alive:
            raise EngineClosed("a CUDA graph was launched after it was closed", remedy="open the engine again")
        with stream.held() as handle:
            called(bindings().cudaGraphLaunch(self._executable, handle))

    def close(self) -> None:
        """Free the graph; again, it does nothing."""
        self._end()


def capture(stream: Stream, work: Callable[[], None]) -> Graph:
    """What `work` queues on the stream, recorded and not run.

    Other threads may use the GPU meanwhile, but must not synchronise the whole device.  `work` must not allocate,
    free or synchronise, and everything in it should have run once before.  Raises CaptureFailed, with the reason.
    """
    try:
        with stream.held() as handle, _no_collection():
            return _instantiate(_recorded(handle, work), handle)
    except Exception as error:
        reason = error.cause or error.fact if isinstance(error, FaceSDKError) else f"{type(error).__name__}: {error}"
        raise CaptureFailed(reason.strip()) from error


def _recorded(stream: int, work: Callable[[], None]) -> Any:
    """The cudaGraph_t; the capture has ended, whatever happens."""
    cuda = bindings()
    called(cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    try:
        work()
    except BaseException:
        code, graph = cuda.cudaStreamEndCapture(stream)
        if not int(code):
            cuda.cudaGraphDestroy(graph)
        raise
    return called(cuda.cudaStreamEndCapture(stream))


def _instantiate(graph: Any, stream: int) -> Graph:
    cuda = bindings()
    try:
        made = Graph(int(called(cuda.cudaGraphInstantiateWithFlags(graph, _PLAIN))))
        called(cuda.cudaGraphUpload(made._executable, stream))
    finally:
        cuda.cudaGraphDestroy(graph)
    return made


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected later: the release of an array on the GPU, in this thread, would break the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _end(cuda: Any, stream: int) -> None:
    """Wait for the work, as the memory that it uses may be freed next, and destroy the stream."""
    cuda.cudaStreamSynchronize(stream)
    cuda.cudaStreamDestroy(stream)


def _address(array: Array) -> int:
    if not array.flags.c_contiguous:
        raise UsageError("an array to copy is not contiguous", remedy="give numpy.ascontiguousarray(array)")
    return int(array.ctypes.data)
