"""A strict stand-in of `cuda.bindings.runtime` over host memory: what CUDA may do late, it does late.

    cuda = FakeCuda().install(monkeypatch)      # facesdk.cuda.runtime.bindings() is now `cuda`
    ...
    cuda.check()                                # at the end: no misuse, no leak, no write out of bounds

Memory      pointers are real (host) addresses, aligned to 256, fresh memory is 0xFF (NaN in every float), and stands
            between guard zones.  `cuda.array(pointer, shape, dtype)` views live device memory, as a kernel would.
Streams     work waits in its stream until something synchronises: the stream, an event, the device, or another stream
            that was told to wait.  A missing synchronisation therefore reads 0xFF.  `cudaMemcpy` and `cudaFree` wait
            for the default stream alone, as all others are non-blocking.  `cuda.enqueue(stream, work)` queues any
            callable, as another library's launch does.
Copies      must lie within one live allocation, when they are queued and when they run.  Pageable memory that is
            uploaded is read at once, and arrives late, even by `cudaMemcpy`; pinned memory is read when the copy runs.
Capture     queued work is recorded, and runs at each `cudaGraphLaunch`.  Forbidden calls of the capturing thread
            (allocation, release, cudaMemcpy, synchronisation, pageable copies, foreign events) and a device
            synchronisation of any thread invalidate it.
Errors      tuples of (code, None...), like the real ones.  Failures of queued work come from the synchronisation, and
            stay.  `cuda.failing["cudaGraphLaunch"] = "LaunchFailure"` makes a call fail until it is deleted.
Facts       `cuda.calls["cudaMalloc"]` counts, `cuda.leaked()` lists what is alive, `cuda.faults` what was misused,
            `cuda.queued(stream)` how much work waits.
"""

# ruff: noqa: N801, N802, N815 -- the names are CUDA's
from __future__ import annotations

import collections
import ctypes
import dataclasses
import enum
import functools
import gc
import itertools
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy.typing as npt
import pytest

from tests.cuda_blocks import Blocks, Kind, Refused

Work = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInitializationError = 3
    cudaErrorInvalidMemcpyDirection = 21
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureUnmatched = 903
    cudaErrorStreamCaptureIsolation = 905
    cudaErrorCapturedEvent = 907
    cudaErrorStreamCaptureWrongThread = 908
    cudaErrorUnknown = 999


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class LaunchFailure(Exception):
    """Raised by queued work: the kernel failed.  The next synchronisation tells, and every call after it."""


class Handle:
    """A stream, event or graph: no integer, but `int(handle)` gives its address, as with cuda-python's."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __int__(self) -> int:
        return self._address


@dataclasses.dataclass
class _Capture:
    thread: int
    mode: int
    work: list[Work] = dataclasses.field(default_factory=list)
    broken: str = ""


@dataclasses.dataclass
class _Stream:
    queue: collections.deque[Work] = dataclasses.field(default_factory=collections.deque)
    capture: _Capture | None = None


@dataclasses.dataclass
class _Record:
    """One cudaEventRecord: where it stands, and when it was passed."""

    stream: _Stream
    captured: _Capture | None
    passed: float | None = None


@dataclasses.dataclass
class _Event:
    timing: bool
    record: _Record | None = None


def _call(values: int = 0, *, unsafe: bool = False) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """An entry of the runtime that answers (code, *values).  `unsafe`: forbidden to a thread that captures."""

    def entry(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        name = function.__name__

        @functools.wraps(function)
        def api(self: FakeCuda, *arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls[name] += 1
                try:
                    self._admit(name, unsafe)
                    value = function(self, *arguments)
                except Refused as refusal:
                    return (self._tell(refusal), *[None] * values)
                answer = () if not values else (value,) if values == 1 else value
                return (cudaError_t.cudaSuccess, *answer)

        return api

    return entry


class FakeCuda:
    """The runtime of one GPU with `memory` bytes.

    no_driver     every call answers cudaErrorInsufficientDriver, as cuda-python does without a driver.
    count=0       a driver without a GPU: cudaErrorNoDevice.
    fail_capture  the first work that is queued on a capturing stream invalidates the capture.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking: ClassVar[int] = 1
    cudaEventDisableTiming: ClassVar[int] = 2
    cudaHostAllocDefault: ClassVar[int] = 0
    cudaDeviceScheduleSpin: ClassVar[int] = 1

    def __init__(
        self, *, memory: int = 1 << 30, count: int = 1, no_driver: bool = False, fail_capture: bool = False
    ) -> None:
        self.memory, self.count, self.no_driver, self.fail_capture = memory, count, no_driver, fail_capture
        self.calls: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.failing: dict[str, str] = {}
        self._lock = threading.RLock()
        self.blocks = Blocks()
        # 0 is the default stream, 2 the one per thread, of which there is one here for all threads
        self._streams: dict[int, _Stream] = {0: _Stream(), 2: _Stream()}
        self._events: dict[int, _Event] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._addresses = itertools.count(0x50000000, 0x100)
        self._sticky = ""

    # -- for tests ------------------------------------------------------------------------------------------------

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """The same runtime, now behind `import cuda.bindings.runtime`."""
        package = types.ModuleType("cuda.bindings")
        package.runtime = self  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        return self

    def enqueue(self, stream: Any, work: Work) -> None:
        """Queue `work` on a stream, or record it where the stream captures; errors as in CUDA are raised."""
        with self._lock:
            self._enqueue(self._stream(stream), work)

    def array(self, pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Device memory as a kernel sees it; Refused where it is not within one live allocation."""
        with self._lock:
            return self.blocks.array(int(pointer), shape, dtype)

    def queued(self, stream: Any) -> int:
        """How many pieces of work wait in a stream."""
        return len(self._stream(stream).queue)

    @property
    def used(self) -> int:
        """Bytes of live device memory."""
        return self.blocks.used(Kind.DEVICE)

    def leaked(self) -> list[str]:
        """What was made and is still alive, after garbage collection."""
        if self._alive():
            gc.collect()
        return self._alive()

    def check(self) -> None:
        """AssertionError for misuse, leaks, and writes beside allocations or after their release."""
        leaks = [f"leaked: {what}" for what in self.leaked()]
        waiting = [f"never run: work on stream {a:#x}" for a, stream in self._streams.items() if a and stream.queue]
        problems = [*self.faults, *self.blocks.problems(), *waiting, *leaks]
        assert not problems, "\n".join(problems)

    # -- device ---------------------------------------------------------------------------------------------------

    @_call(1)
    def cudaGetDeviceCount(self) -> int:
        return self.count

    @_call(1)
    def cudaGetDevice(self) -> int:
        return 0

    @_call()
    def cudaSetDeviceFlags(self, flags: int) -> None:
        pass

    @_call()
    def cudaDeviceSynchronize(self) -> None:
        captures = [stream.capture for stream in self._streams.values() if stream.capture]
        for capture in captures:
            capture.broken = capture.broken or "cudaDeviceSynchronize"
        if captures:
            raise Refused("StreamCaptureUnsupported")
        for stream in list(self._streams.values()):
            self._drain(stream)

    # -- memory ---------------------------------------------------------------------------------------------------

    @_call(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.memory - self.used, self.memory

    @_call(1, unsafe=True)
    def cudaMalloc(self, size: int) -> int:
        if self.used + size > self.memory:
            raise Refused("MemoryAllocation")
        return self.blocks.allocate(size, Kind.DEVICE)

    @_call(1, unsafe=True)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        return self.blocks.allocate(size, Kind.PINNED)

    @_call(unsafe=True)
    def cudaFree(self, pointer: Any) -> None:
        self._drain(self._streams[0])
        self.blocks.free(int(pointer), Kind.DEVICE)

    @_call(unsafe=True)
    def cudaFreeHost(self, pointer: Any) -> None:
        self.blocks.free(int(pointer), Kind.PINNED)

    @_call(unsafe=True)
    def cudaMemcpy(self, target: Any, source: Any, count: int, kind: Any) -> None:
        self._copy(self._streams[0], int(target), int(source), count, kind)
        if kind == cudaMemcpyKind.cudaMemcpyDeviceToHost or self.blocks.find(int(source)):
            self._drain(self._streams[0])  # of pageable memory, it returns before the last transfer is done

    @_call()
    def cudaMemcpyAsync(self, target: Any, source: Any, count: int, kind: Any, stream: Any) -> None:
        self._copy(self._stream(stream), int(target), int(source), count, kind)

    # -- streams and events ---------------------------------------------------------------------------------------

    @_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Handle:
        assert flags == self.cudaStreamNonBlocking, "this stand-in has non-blocking streams alone"
        return self._new(self._streams, _Stream())

    @_call()
    def cudaStreamDestroy(self, stream: Any) -> None:
        lane = self._stream(stream)
        if int(stream) <= 2:
            raise Refused("InvalidResourceHandle", "the default stream was destroyed")
        if lane.capture or lane.queue:
            self.faults.append(f"stream {int(stream):#x} was destroyed with work in it")
        del self._streams[int(stream)]

    @_call()
    def cudaStreamSynchronize(self, stream: Any) -> None:
        lane = self._stream(stream)
        if lane.capture:
            self._break(lane.capture, "cudaStreamSynchronize", "StreamCaptureUnsupported")
        self._drain(lane)

    @_call()
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        lane, record = self._stream(stream), self._event(event).record
        if record is None or (record.captured and record.captured is lane.capture):
            return
        if lane.capture or (record.captured and record.captured is record.stream.capture):
            capture = lane.capture or record.captured
            assert capture
            self._break(capture, "a wait across the border of the capture", "StreamCaptureIsolation")
        if record.captured:
            raise Refused("CapturedEvent")
        self._enqueue(lane, functools.partial(self._run_until, record))

    @_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Handle:
        return self._new(self._events, _Event(timing=not flags & self.cudaEventDisableTiming))

    @_call()
    def cudaEventDestroy(self, event: Any) -> None:
        self._event(event)
        del self._events[int(event)]

    @_call()
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        held, lane = self._event(event), self._stream(stream)
        record = held.record = _Record(lane, lane.capture)

        def passed() -> None:
            record.passed = time.perf_counter()

        if not lane.capture:  # in a capture it orders streams, and marks no time
            self._enqueue(lane, passed)

    @_call()
    def cudaEventSynchronize(self, event: Any) -> None:
        record = self._event(event).record
        if record and record.captured:
            self._break(record.captured, "cudaEventSynchronize", "CapturedEvent")
        if record:
            self._guarded(lambda: self._run_until(record))

    @_call(1)
    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        first, last = self._event(start), self._event(end)
        if not (first.record and last.record and first.timing and last.timing):
            raise Refused("InvalidResourceHandle")
        if first.record.passed is None or last.record.passed is None:
            raise Refused("NotReady")
        return 1e3 * (last.record.passed - first.record.passed)

    # -- graphs ---------------------------------------------------------------------------------------------------

    @_call()
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        lane = self._stream(stream)
        if int(stream) <= 1:
            raise Refused("StreamCaptureUnsupported")
        if lane.capture:
            raise Refused("InvalidValue")
        lane.capture = _Capture(threading.get_ident(), cudaStreamCaptureMode(int(mode)))

    @_call(1)
    def cudaStreamEndCapture(self, stream: Any) -> Handle:
        lane = self._stream(stream)
        capture = lane.capture
        if capture is None:
            raise Refused("InvalidValue")
        if capture.thread != threading.get_ident():
            raise Refused("StreamCaptureWrongThread")
        lane.capture = None
        if capture.broken:
            raise Refused("StreamCaptureInvalidated")
        return self._new(self._graphs, capture.work)

    @_call(1)
    def cudaStreamIsCapturing(self, stream: Any) -> int:
        capture = self._stream(stream).capture
        return 0 if capture is None else 2 if capture.broken else 1

    @_call(1)
    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> Handle:
        return self._new(self._executables, self._known(self._graphs, graph))

    @_call()
    def cudaGraphDestroy(self, graph: Any) -> None:
        self._known(self._graphs, graph)
        del self._graphs[int(graph)]

    @_call()
    def cudaGraphExecDestroy(self, graph: Any) -> None:
        self._known(self._executables, graph)
        del self._executables[int(graph)]

    @_call()
    def cudaGraphUpload(self, graph: Any, stream: Any) -> None:
        self._known(self._executables, graph)
        self._stream(stream)

    @_call()
    def cudaGraphLaunch(self, graph: Any, stream: Any) -> None:
        lane = self._stream(stream)
        for work in self._known(self._executables, graph):
            self._enqueue(lane, work)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _alive(self) -> list[str]:
        with self._lock:
            handles = {"stream": [a for a in self._streams if a > 2], "event": self._events, "graph": self._graphs}
            handles["executable graph"] = self._executables
            named = [f"{kind} {address:#x}" for kind, addresses in handles.items() for address in addresses]
            return [*map(str, self.blocks.alive.values()), *named]

    def _admit(self, name: str, unsafe: bool) -> None:
        if self.no_driver:
            raise Refused("InsufficientDriver")
        if not self.count:
            raise Refused("NoDevice")
        if name in self.failing:
            raise Refused(self.failing[name].removeprefix("cudaError"))
        if self._sticky and "Destroy" not in name and "Free" not in name:
            raise Refused(self._sticky)
        for stream in self._streams.values() if unsafe else ():
            capture = stream.capture
            if capture and capture.mode < 2 and (capture.mode == 0 or capture.thread == threading.get_ident()):
                self._break(capture, name, "StreamCaptureUnsupported")

    def _break(self, capture: _Capture, reason: str, code: str) -> None:
        capture.broken = capture.broken or reason
        raise Refused(code)

    def _tell(self, refusal: Refused) -> enum.IntEnum:
        if refusal.fault:
            self.faults.append(refusal.fault)
        return cudaError_t[f"cudaError{refusal.name}"]

    def _new(self, held: dict[int, Any], what: Any) -> Handle:
        address = next(self._addresses)
        held[address] = what
        return Handle(address)

    def _known(self, held: dict[int, Any], handle: Any) -> Any:
        if int(handle) not in held:
            raise Refused("InvalidResourceHandle", f"handle {int(handle):#x} is not alive")
        return held[int(handle)]

    def _stream(self, handle: Any) -> _Stream:
        address = 0 if handle is None or int(handle) == 1 else int(handle)
        stream: _Stream = self._known(self._streams, address)
        return stream

    def _event(self, handle: Any) -> _Event:
        event: _Event = self._known(self._events, handle)
        return event

    def _enqueue(self, lane: _Stream, work: Work) -> None:
        if lane.capture is None:
            lane.queue.append(work)
            return
        if self.fail_capture:
            self._break(lane.capture, "fail_capture", "StreamCaptureUnsupported")
        if lane.capture.broken:
            raise Refused("StreamCaptureInvalidated")
        lane.capture.work.append(work)

    def _drain(self, lane: _Stream) -> None:
        def run() -> None:
            while lane.queue:
                lane.queue.popleft()()

        self._guarded(run)

    def _run_until(self, record: _Record) -> None:
        while record.passed is None:
            record.stream.queue.popleft()()

    def _guarded(self, run: Work) -> None:
        """Run queued work; what fails there stays, and the rest is lost with the context."""
        try:
            run()
        except (Refused, LaunchFailure) as failure:
            if isinstance(failure, Refused):
                self._tell(failure)
            self._sticky = "IllegalAddress" if isinstance(failure, Refused) else "LaunchFailure"
            for stream in self._streams.values():
                stream.queue.clear()
            raise Refused(self._sticky) from failure

    def _copy(self, lane: _Stream, target: int, source: int, count: int, kind: Any) -> None:
        self._check_copy(target, source, count, kind)
        pageable = [address for address in (target, source) if not self.blocks.find(address)]
        if lane.capture and pageable:
            self._break(lane.capture, "a copy of pageable memory", "StreamCaptureUnsupported")
        staged = ctypes.create_string_buffer(ctypes.string_at(source, count), count) if source in pageable else None

        def copy() -> None:
            self._check_copy(target, source, count, kind)
            ctypes.memmove(target, source if staged is None else staged, count)

        self._enqueue(lane, copy)

    def _check_copy(self, target: int, source: int, count: int, kind: Any) -> None:
        if kind not in (1, 2, 3):
            raise Refused("InvalidMemcpyDirection", f"a copy of kind {kind!r}, which this stand-in does not know")
        for address, on_device in ((target, kind in (1, 3)), (source, kind in (2, 3))):
            (self.blocks.check_device if on_device else self.blocks.check_host)(address, count)
