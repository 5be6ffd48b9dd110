"""The order of work on the GPU: nothing is read before it is there, graphs repeat what was recorded."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from facesdk.cuda.memory import Buffer, DeviceArray, Pinned
from facesdk.cuda.stream import CaptureFailed, Event, Graph, Stream, capture
from facesdk.errors import EngineClosed, EngineError, UsageError
from tests.cuda_fake import FakeCuda, LaunchFailure

F4 = np.float32


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda().install(monkeypatch)
    yield fake
    fake.check()


def kernel(cuda: FakeCuda, stream: Stream, room: Buffer, change: Callable[[Any], Any]) -> None:
    """Queue x = change(x) on four floats."""

    def run() -> None:
        values = cuda.array(room.pointer, (4,), F4)
        values[:] = change(values)

    cuda.enqueue(stream.handle, run)


def pinned(*values: float) -> Any:
    array = Pinned(4 * len(values)).array((len(values),), F4)
    array[:] = values
    return array


# -- streams --------------------------------------------------------------------------------------------------------


def test_work_runs_in_order_when_it_is_waited_for(cuda: FakeCuda) -> None:
    stream, room, second, out = Stream(), Buffer(16), Buffer(16), pinned(0, 0, 0, 0)
    stream.upload(room.pointer, pinned_in := pinned(1, 2, 3, 4))
    kernel(cuda, stream, room, lambda x: 10 * x)
    stream.copy(second.pointer, room.pointer, 16)
    stream.download(out, second.pointer)
    assert out.tolist() == [0, 0, 0, 0]
    stream.synchronize()
    assert out.tolist() == [10, 20, 30, 40]
    del pinned_in


def test_pageable_arrays_may_go_at_once(cuda: FakeCuda) -> None:
    stream, room, out = Stream(), Buffer(16), np.zeros(4, F4)
    values = np.arange(4, dtype=F4)
    stream.upload(room.pointer, values)
    values[:] = -1
    stream.download(out, room.pointer)
    stream.synchronize()
    assert out.tolist() == [0, 1, 2, 3]


def test_empty_arrays_are_no_copies(cuda: FakeCuda) -> None:
    stream = Stream()
    stream.upload(0, np.empty((0, 3), F4))
    stream.download(np.empty(0, F4), 0)
    assert cuda.calls["cudaMemcpyAsync"] == 0


def test_arrays_that_cannot_be_copied_are_refused(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(64)
    with pytest.raises(UsageError, match="ascontiguousarray"):
        stream.upload(room.pointer, np.zeros((4, 4), F4).T[1:])
    with pytest.raises(UsageError, match="ascontiguousarray"):
        stream.download(np.zeros((4, 4), F4)[:, 1:], room.pointer)
    constant = np.zeros(4, F4)
    constant.flags.writeable = False
    stream.upload(room.pointer, constant)
    with pytest.raises(UsageError, match="read-only"):
        stream.download(constant, room.pointer)
    stream.synchronize()


def test_streams_do_not_wait_for_each_other_unless_told(cuda: FakeCuda) -> None:
    first, second, room, out = Stream(), Stream(), Buffer(16), pinned(0, 0, 0, 0)
    kernel(cuda, first, room, lambda x: F4(5))
    second.download(out, room.pointer)
    second.synchronize()
    assert np.isnan(out).all()
    second.wait(first.record())
    second.download(out, room.pointer)
    second.synchronize()
    assert out.tolist() == [5, 5, 5, 5]


def test_work_of_other_packages_is_waited_for(cuda: FakeCuda) -> None:
    stream, room, out = Stream(), Buffer(16), pinned(0, 0, 0, 0)
    cuda.enqueue(0, lambda: cuda.array(room.pointer, (4,), F4).fill(3))
    stream.wait_for_default()
    stream.download(out, room.pointer)
    stream.synchronize()
    assert out.tolist() == [3, 3, 3, 3]


def test_events_take_time(cuda: FakeCuda) -> None:
    stream = Stream()
    start = stream.record()
    cuda.enqueue(stream.handle, lambda: time.sleep(0.02))
    end = stream.record()
    with pytest.raises(EngineError, match="cudaErrorNotReady"):
        end.elapsed_ms(start)
    end.synchronize()
    assert 19 < end.elapsed_ms(start) < 2000


def test_an_event_waits_for_what_is_before_it_alone(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(16)
    kernel(cuda, stream, room, lambda x: F4(1))
    mark = stream.record()
    kernel(cuda, stream, room, lambda x: F4(2))
    mark.synchronize()
    assert cuda.array(room.pointer, (4,), F4).tolist() == [1, 1, 1, 1]
    stream.close()


def test_closing_a_stream_waits_for_its_work(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(16)
    kernel(cuda, stream, room, lambda x: F4(1))
    stream.close()
    stream.close()
    assert cuda.array(room.pointer, (4,), F4).tolist() == [1, 1, 1, 1]
    for use in (stream.synchronize, stream.record, lambda: stream.copy(room.pointer, room.pointer, 4)):
        with pytest.raises(EngineClosed, match="open the engine again"):
            use()
    assert cuda.calls["cudaStreamDestroy"] == 1


def test_a_stream_goes_with_its_object(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(16)
    kernel(cuda, stream, room, lambda x: F4(1))
    mark = stream.record()
    del stream
    assert cuda.array(room.pointer, (4,), F4).tolist() == [1, 1, 1, 1]
    mark.synchronize()


def test_no_thread_closes_what_another_one_uses(cuda: FakeCuda) -> None:
    stream, entered, order = Stream(), threading.Event(), list[str]()

    def use() -> None:
        with stream.held():
            entered.set()
            time.sleep(0.05)
            order.append("used")

    thread = threading.Thread(target=use)
    thread.start()
    entered.wait(5)
    stream.close()
    order.append("closed")
    thread.join()
    assert order == ["used", "closed"]


def test_failed_work_is_told_at_the_synchronisation(cuda: FakeCuda) -> None:
    stream = Stream()

    def broken() -> None:
        raise LaunchFailure

    cuda.enqueue(stream.handle, broken)
    with pytest.raises(EngineError, match="cudaErrorLaunchFailure"):
        stream.synchronize()
    with pytest.raises(EngineError, match="cudaErrorLaunchFailure"):
        Buffer(4)


# -- graphs ---------------------------------------------------------------------------------------------------------


def test_a_graph_repeats_what_was_recorded(cuda: FakeCuda) -> None:
    stream, room, source, out = Stream(), Buffer(16), pinned(1, 2, 3, 4), pinned(0, 0, 0, 0)

    def work() -> None:
        stream.upload(room.pointer, source)
        for _ in range(3):
            kernel(cuda, stream, room, lambda x: 2 * x)
        stream.download(out, room.pointer)

    graph = capture(stream, work)
    stream.synchronize()
    assert out.tolist() == [0, 0, 0, 0]
    for first in (1, 10):
        source[:] = first
        graph.launch(stream)
        stream.synchronize()
        assert out.tolist() == [8 * first] * 4
    other = Stream()
    graph.launch(other)
    other.synchronize()
    assert cuda.calls["cudaGraphLaunch"] == 3
    graph.close()
    graph.close()
    with pytest.raises(EngineClosed):
        graph.launch(stream)
    assert not any("graph" in what for what in cuda.leaked())


def use_an_event(stream: Stream, room: Buffer) -> None:
    Event(stream.handle).synchronize()


def go_wrong(stream: Stream, room: Buffer) -> None:
    raise ValueError("the work went wrong")


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (lambda stream, room: Buffer(4), "StreamCaptureUnsupported"),
        (lambda stream, room: Pinned(4), "StreamCaptureUnsupported"),
        (lambda stream, room: DeviceArray.at(room, (4,), F4).numpy(), "StreamCaptureUnsupported"),
        (lambda stream, room: stream.upload(room.pointer, np.zeros(1, F4)), "StreamCaptureUnsupported"),
        (lambda stream, room: stream.wait_for_default(), "StreamCaptureIsolation"),
        (lambda stream, room: stream.synchronize(), "StreamCaptureUnsupported"),
        (use_an_event, "CapturedEvent"),
        (go_wrong, "ValueError: the work went wrong"),
    ],
    ids=["allocate", "allocate pinned", "read", "pageable", "another stream", "synchronize", "event", "exception"],
)
def test_what_cannot_be_recorded_is_told(cuda: FakeCuda, work: Callable[[Stream, Buffer], None], reason: str) -> None:
    stream, room, out = Stream(), Buffer(16), pinned(0)
    kernel(cuda, stream, room, lambda x: F4(6))
    with pytest.raises(CaptureFailed) as failure:
        capture(stream, lambda: work(stream, room))
    assert reason in failure.value.cause
    assert str(failure.value) == failure.value.cause
    stream.download(out, room.pointer)  # the stream goes on as if nothing had been
    stream.synchronize()
    assert out.tolist() == [6]
    failure.value.__traceback__ = None


def test_memory_that_is_freed_in_a_capture_breaks_it(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(16)
    with pytest.raises(CaptureFailed, match="cudaErrorStreamCaptureInvalidated"):
        capture(stream, room.close)
    (leak,) = cuda.blocks.alive  # the runtime refused: such work must not be given to a capture
    cuda.cudaFree(leak)


def test_an_interrupt_ends_the_capture_too(cuda: FakeCuda) -> None:
    stream = Stream()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(stream, interrupted)
    assert int(cuda.cudaStreamIsCapturing(stream.handle)[1]) == 0
    assert cuda.calls["cudaGraphDestroy"] == 1


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaGraphInstantiateWithFlags", "cudaGraphUpload"])
def test_a_refused_graph_leaves_nothing(cuda: FakeCuda, call: str) -> None:
    stream = Stream()
    cuda.failing[call] = "MemoryAllocation"
    with pytest.raises(CaptureFailed, match="are free"):
        capture(stream, lambda: None)
    assert cuda.leaked() == [f"stream {stream.handle:#x}"]


def test_a_runtime_that_cannot_capture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(fail_capture=True).install(monkeypatch)
    stream, room = Stream(), Buffer(16)
    with pytest.raises(CaptureFailed):
        capture(stream, lambda: kernel(cuda, stream, room, lambda x: x))
    stream.close()
    room.close()
    cuda.check()


def test_garbage_is_not_collected_during_a_capture(cuda: FakeCuda) -> None:
    stream, room = Stream(), Buffer(16)

    def cycle() -> None:
        circle: list[Any] = [Buffer(4)]
        circle.append(circle)

    cycle()

    def work() -> None:
        for _ in range(10 * gc.get_threshold()[0]):
            [[]].append([])
        kept = [[i] for i in range(10 * gc.get_threshold()[0])]
        kernel(cuda, stream, room, lambda x: x)
        del kept

    graph = capture(stream, work)
    assert gc.isenabled()
    gc.collect()
    graph.close()
    gc.disable()
    try:
        capture(stream, work).close()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_other_threads_use_the_gpu_during_a_capture(cuda: FakeCuda) -> None:
    stream, room, seen = Stream(), Buffer(16), list[Any]()

    def elsewhere() -> None:
        other = Stream()
        with_mark = DeviceArray.at(room, (4,), F4, ready=other.record())
        seen.append(with_mark.numpy())
        seen.append(DeviceArray.of(np.ones(3, F4)).__dlpack__(stream=-1))
        seen.append(int(cuda.cudaGetDeviceCount()[1]))

    def work() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        kernel(cuda, stream, room, lambda x: F4(4))

    graph = capture(stream, work)
    assert len(seen) == 3
    graph.launch(stream)
    stream.synchronize()
    assert cuda.array(room.pointer, (4,), F4).tolist() == [4, 4, 4, 4]
    seen.clear()
    del graph


def test_a_capture_is_thread_local(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    begin = cuda.cudaStreamBeginCapture
    monkeypatch.setattr(cuda, "cudaStreamBeginCapture", lambda s, mode: (modes.append(mode.name), begin(s, mode))[1])
    assert isinstance(capture(Stream(), lambda: None), Graph)
    assert modes == ["cudaStreamCaptureModeThreadLocal"]


def test_events_of_a_capture_order_its_own_stream(cuda: FakeCuda) -> None:
    stream = Stream()
    graph = capture(stream, lambda: stream.wait(stream.record()))
    graph.launch(stream)
    stream.synchronize()
