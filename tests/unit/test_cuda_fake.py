"""The stand-in of the CUDA runtime finds what a GPU would punish later, elsewhere, or in silence."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from tests.cuda_blocks import Refused
from tests.cuda_fake import FakeCuda, Work, cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode

H2D, D2H, D2D = (cudaMemcpyKind[f"cudaMemcpy{way}"] for way in ("HostToDevice", "DeviceToHost", "DeviceToDevice"))
THREAD_LOCAL = cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


def ok(answer: tuple[Any, ...]) -> Any:
    assert answer[0] == 0, answer
    return answer[1] if len(answer) == 2 else None


def code(answer: tuple[Any, ...]) -> str:
    return str(answer[0].name).removeprefix("cuda").removeprefix("Error")


def stream_of(cuda: FakeCuda) -> int:
    return int(ok(cuda.cudaStreamCreateWithFlags(1)))


def test_a_tidy_run_passes() -> None:
    cuda, data, out = FakeCuda(), np.arange(5.0), np.zeros(5)
    room, stream = ok(cuda.cudaMalloc(40)), stream_of(cuda)
    ok(cuda.cudaMemcpyAsync(room, data.ctypes.data, 40, H2D, stream))
    ok(cuda.cudaMemcpyAsync(out.ctypes.data, room, 40, D2H, stream))
    assert (cuda.queued(stream), out.tolist()) == (2, [0] * 5)
    ok(cuda.cudaStreamSynchronize(stream))
    np.testing.assert_array_equal(out, data)
    ok(cuda.cudaFree(room))
    ok(cuda.cudaStreamDestroy(stream))
    cuda.check()
    assert (cuda.calls["cudaMemcpyAsync"], cuda.used) == (2, 0)


def test_fresh_memory_is_poison() -> None:
    cuda = FakeCuda()
    assert np.isnan(cuda.array(ok(cuda.cudaMalloc(12)), (3,), np.float32)).all()


def test_memory_ends() -> None:
    cuda = FakeCuda(memory=100)
    first = ok(cuda.cudaMalloc(60))
    assert cuda.cudaMalloc(41) == (cudaError_t.cudaErrorMemoryAllocation, None)
    assert cuda.cudaMemGetInfo() == (cudaError_t.cudaSuccess, 40, 100)
    ok(cuda.cudaFree(first))
    ok(cuda.cudaMalloc(100))


def test_what_is_not_given_back_is_listed() -> None:
    cuda = FakeCuda()
    for answer in (cuda.cudaMalloc(7), cuda.cudaHostAlloc(8, 0), cuda.cudaEventCreateWithFlags(0)):
        ok(answer)
    stream_of(cuda)
    assert [what.split(" at ")[0].split(" 0x")[0] for what in cuda.leaked()] == [
        "7 bytes of device memory", "8 bytes of pinned memory", "stream", "event",
    ]  # fmt: skip
    with pytest.raises(AssertionError, match="leaked: 7 bytes"):
        cuda.check()


def bytes_beside(cuda: FakeCuda, room: int) -> None:
    ctypes.memset(room + 16, 0, 1)


def bytes_before(cuda: FakeCuda, room: int) -> None:
    ctypes.memset(room - 1, 0, 1)


def write_after_free(cuda: FakeCuda, room: int) -> None:
    ok(cuda.cudaFree(room))
    ctypes.memset(room, 0, 1)


def double_free(cuda: FakeCuda, room: int) -> None:
    cuda.cudaFree(room)
    assert code(cuda.cudaFree(room)) == "InvalidValue"


def free_as_pinned(cuda: FakeCuda, room: int) -> None:
    assert code(cuda.cudaFreeHost(room)) == "InvalidValue"


def copy_too_much(cuda: FakeCuda, room: int) -> None:
    assert code(cuda.cudaMemcpy(room + 1, np.zeros(2).ctypes.data, 16, H2D)) == "InvalidValue"


def copy_the_wrong_way(cuda: FakeCuda, room: int) -> None:
    assert code(cuda.cudaMemcpy(np.zeros(2).ctypes.data, room, 16, H2D)) == "InvalidValue"


def copy_to_freed_memory(cuda: FakeCuda, room: int) -> None:
    stream, data = stream_of(cuda), np.zeros(2)
    ok(cuda.cudaMemcpyAsync(room, data.ctypes.data, 16, H2D, stream))
    ok(cuda.cudaFree(room))
    assert code(cuda.cudaStreamSynchronize(stream)) == "IllegalAddress"
    assert code(cuda.cudaMalloc(1)) == "IllegalAddress"


def download_into_freed_memory(cuda: FakeCuda, room: int) -> None:
    host = ok(cuda.cudaHostAlloc(16, 0))
    ok(cuda.cudaFreeHost(host))
    assert code(cuda.cudaMemcpy(host, room, 16, D2H)) == "InvalidValue"


def use_a_dead_stream(cuda: FakeCuda, room: int) -> None:
    stream = stream_of(cuda)
    ok(cuda.cudaStreamDestroy(stream))
    assert code(cuda.cudaStreamSynchronize(stream)) == "InvalidResourceHandle"


def destroy_a_busy_stream(cuda: FakeCuda, room: int) -> None:
    stream = stream_of(cuda)
    cuda.enqueue(stream, lambda: None)
    ok(cuda.cudaStreamDestroy(stream))


def never_synchronise(cuda: FakeCuda, room: int) -> None:
    cuda.enqueue(stream_of(cuda), lambda: None)


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (bytes_beside, "written beside 16 bytes"),
        (bytes_before, "written beside 16 bytes"),
        (write_after_free, "written after free"),
        (double_free, "freed twice"),
        (free_as_pinned, "never allocated this way"),
        (copy_too_much, "reach out of 16 bytes"),
        (copy_the_wrong_way, "is not in live device memory"),
        (copy_to_freed_memory, "is not in live device memory"),
        (download_into_freed_memory, "was freed before"),
        (use_a_dead_stream, "is not alive"),
        (destroy_a_busy_stream, "destroyed with work in it"),
        (never_synchronise, "never run"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_misuse_is_found(misuse: Any, told: str) -> None:
    cuda = FakeCuda()
    misuse(cuda, ok(cuda.cudaMalloc(16)))
    with pytest.raises(AssertionError, match=told):
        cuda.check()


def test_a_kernel_that_reaches_too_far_is_stopped() -> None:
    cuda = FakeCuda()
    room = ok(cuda.cudaMalloc(16))
    with pytest.raises(Refused, match=r"20 bytes at .* reach out of"):
        cuda.array(room, (5,), np.float32)
    with pytest.raises(Refused, match="not in live device memory"):
        cuda.array(ok(cuda.cudaHostAlloc(16, 0)), (4,), np.float32)


def test_pinned_memory_is_read_late_and_pageable_memory_arrives_late() -> None:
    cuda = FakeCuda()
    room, stream, host = ok(cuda.cudaMalloc(4)), stream_of(cuda), ok(cuda.cudaHostAlloc(4, 0))
    ctypes.memset(host, 1, 4)
    ok(cuda.cudaMemcpyAsync(room, host, 4, H2D, stream))
    ctypes.memset(host, 2, 4)
    ok(cuda.cudaStreamSynchronize(stream))
    assert cuda.array(room, (4,), np.uint8).tolist() == [2] * 4
    ok(cuda.cudaMemcpy(room, np.full(4, 3, np.uint8).ctypes.data, 4, H2D))
    assert cuda.array(room, (4,), np.uint8).tolist() == [2] * 4
    ok(cuda.cudaStreamSynchronize(stream))
    assert cuda.array(room, (4,), np.uint8).tolist() == [2] * 4
    ok(cuda.cudaStreamSynchronize(0))
    assert cuda.array(room, (4,), np.uint8).tolist() == [3] * 4


def test_waits_run_other_streams_as_far_as_the_event() -> None:
    cuda, order = FakeCuda(), list[str]()
    streams = [stream_of(cuda) for _ in range(3)]
    events = [int(ok(cuda.cudaEventCreateWithFlags(0))) for _ in streams]

    def say(stream: int, word: str) -> None:
        cuda.enqueue(stream, lambda: order.append(word))

    for index, stream in enumerate(streams):
        say(stream, f"before {index}")
        if index:
            ok(cuda.cudaStreamWaitEvent(stream, events[index - 1], 0))
        say(stream, f"after {index}")
        ok(cuda.cudaEventRecord(events[index], stream))
        say(stream, f"late {index}")
    ok(cuda.cudaStreamSynchronize(streams[2]))
    assert order == ["before 2", "before 1", "before 0", "after 0", "after 1", "after 2", "late 2"]


# -- capture --------------------------------------------------------------------------------------------------------


def begin(cuda: FakeCuda) -> int:
    stream = stream_of(cuda)
    ok(cuda.cudaStreamBeginCapture(stream, THREAD_LOCAL))
    return stream


def elsewhere(work: Work) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_work_of_a_capture_runs_at_each_launch() -> None:
    cuda, ran = FakeCuda(), list[int]()
    stream = begin(cuda)
    cuda.enqueue(stream, lambda: ran.append(1))
    graph = ok(cuda.cudaStreamEndCapture(stream))
    executable = ok(cuda.cudaGraphInstantiateWithFlags(graph, 0))
    ok(cuda.cudaGraphDestroy(graph))
    ok(cuda.cudaStreamSynchronize(stream))
    assert ran == []
    for _ in range(2):
        ok(cuda.cudaGraphLaunch(executable, stream))
    assert ran == []
    ok(cuda.cudaDeviceSynchronize())
    assert ran == [1, 1]
    assert not isinstance(executable, int)


def test_a_capture_forbids_calls_of_its_thread() -> None:
    cuda = FakeCuda()
    stream = begin(cuda)
    answers: list[str] = []
    elsewhere(lambda: answers.append(code(cuda.cudaMalloc(4))))
    assert answers == ["Success"]
    ok(cuda.cudaStreamIsCapturing(stream))
    assert code(cuda.cudaMalloc(4)) == "StreamCaptureUnsupported"
    with pytest.raises(Refused, match="StreamCaptureInvalidated"):
        cuda.enqueue(stream, lambda: None)
    assert cuda.cudaStreamEndCapture(stream) == (cudaError_t.cudaErrorStreamCaptureInvalidated, None)
    ok(cuda.cudaMalloc(4))


def test_no_thread_may_synchronise_the_device_during_a_capture() -> None:
    cuda = FakeCuda()
    stream, answers = begin(cuda), list[str]()
    elsewhere(lambda: answers.append(code(cuda.cudaDeviceSynchronize())))
    assert answers == ["StreamCaptureUnsupported"]
    assert code(cuda.cudaStreamEndCapture(stream)) == "StreamCaptureInvalidated"


def test_a_capture_ends_in_its_thread() -> None:
    cuda = FakeCuda()
    stream, answers = begin(cuda), list[str]()
    elsewhere(lambda: answers.append(code(cuda.cudaStreamEndCapture(stream))))
    assert answers == ["StreamCaptureWrongThread"]


def test_the_default_stream_is_not_captured() -> None:
    assert code(FakeCuda().cudaStreamBeginCapture(0, THREAD_LOCAL)) == "StreamCaptureUnsupported"


def test_captures_fail_where_they_are_told_to() -> None:
    cuda = FakeCuda(fail_capture=True)
    stream = begin(cuda)
    with pytest.raises(Refused, match="StreamCaptureUnsupported"):
        cuda.enqueue(stream, lambda: None)
    assert code(cuda.cudaStreamEndCapture(stream)) == "StreamCaptureInvalidated"


def test_calls_fail_where_they_are_told_to() -> None:
    cuda = FakeCuda()
    cuda.failing["cudaMalloc"] = "cudaErrorUnknown"
    assert cuda.cudaMalloc(4) == (cudaError_t.cudaErrorUnknown, None)
    cuda.failing["cudaMalloc"] = "LaunchFailure"
    assert code(cuda.cudaMalloc(4)) == "LaunchFailure"
    del cuda.failing["cudaMalloc"]
    ok(cuda.cudaMalloc(4))
