"""Memory on the GPU and page-locked memory: freed once, never too early, and arrays in it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from facesdk.cuda import bfloat16
from facesdk.cuda.memory import STORAGE, Buffer, DeviceArray, Pinned
from facesdk.cuda.stream import Stream
from facesdk.errors import EngineClosed, OutOfMemory, UsageError
from tests.cuda_fake import FakeCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda(memory=1 << 20).install(monkeypatch)
    yield fake
    fake.check()


def values_of(element: str, *shape: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).integers(-100, 100, shape)
    return values.astype(np.float32 if element == "bf16" else STORAGE[element])


# -- buffers --------------------------------------------------------------------------------------------------------


def test_memory_lives_as_long_as_its_object(cuda: FakeCuda) -> None:
    room = Buffer(1000)
    assert (room.nbytes, room.device, room.pointer % 256, cuda.used) == (1000, 0, 0, 1000)
    del room
    assert cuda.used == 0
    assert cuda.calls["cudaFree"] == 1


def test_closing_twice_frees_once(cuda: FakeCuda) -> None:
    for room, free in ((Buffer(10), "cudaFree"), (Pinned(10), "cudaFreeHost")):
        room.close()
        room.close()
        del room
        gc.collect()
        assert cuda.calls[free] == 1
    assert cuda.leaked() == []


def test_closed_memory_is_not_given_out(cuda: FakeCuda) -> None:
    room, pinned = Buffer(16), Pinned(16)
    array = DeviceArray.at(room, (4,), np.float32)
    room.close()
    pinned.close()
    with pytest.raises(EngineClosed, match="after it was freed"):
        _ = room.pointer
    with pytest.raises(EngineClosed, match="after it was freed"):
        array.numpy()
    with pytest.raises(EngineClosed, match="after it was freed"):
        pinned.array((4,), np.float32)


def test_nothing_takes_memory_too(cuda: FakeCuda) -> None:
    empty = DeviceArray.of(np.empty((0, 3), np.float32))
    assert (empty.nbytes, empty.numpy().shape) == (0, (0, 3))
    assert Pinned(0).array((0, 3), np.float32).shape == (0, 3)


def test_the_process_takes_its_memory_with_it(cuda: FakeCuda) -> None:
    """No finalizer is left for the interpreter's exit, when the driver may be gone already."""
    held = Buffer(4), Pinned(4), Stream()
    queue = weakref.finalize._registry  # type: ignore[attr-defined]
    ours = [info for info in queue.values() if getattr(info.func, "__self__", info.args[:1] == (cuda,)) in (cuda, True)]
    assert len(ours) == 3
    assert not any(info.atexit for info in ours)
    del held


# -- page-locked memory ---------------------------------------------------------------------------------------------


def test_pinned_memory_is_an_array(cuda: FakeCuda) -> None:
    pinned = Pinned(24)
    array = pinned.array((2, 3), np.float32)
    array[...] = np.arange(6).reshape(2, 3)
    assert array.flags.writeable
    assert pinned.array((6,), np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match=r"\[7\] with 4 bytes each does not fit into 24 bytes"):
        pinned.array((7,), np.float32)


def test_an_array_keeps_pinned_memory(cuda: FakeCuda) -> None:
    array = Pinned(16).array((2, 2), np.float32)
    row = array[1]
    del array
    gc.collect()
    row[:] = 1
    assert cuda.calls["cudaFreeHost"] == 0
    del row
    assert cuda.calls["cudaFreeHost"] == 1


def test_no_room_for_pinned_memory_is_told(cuda: FakeCuda) -> None:
    cuda.failing["cudaHostAlloc"] = "MemoryAllocation"
    with pytest.raises(OutOfMemory, match=r"the host has no room for 2\.0 MB of page-locked memory"):
        Pinned(2_000_000)


# -- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", STORAGE)
def test_arrays_hold_what_was_put_in(cuda: FakeCuda, element: str) -> None:
    values = values_of(element, 2, 3)
    array = DeviceArray.of(values, element if element == "bf16" else None)
    assert (array.shape, array.element, array.nbytes) == ((2, 3), element, 6 * np.dtype(STORAGE[element]).itemsize)
    assert array.dtype == (None if element == "bf16" else values.dtype)
    np.testing.assert_array_equal(array.numpy(), bfloat16.rounded(values) if element == "bf16" else values)
    assert array.numpy().dtype == (np.float32 if element == "bf16" else values.dtype)


def test_values_of_any_layout_are_packed(cuda: FakeCuda) -> None:
    values = np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(DeviceArray.of(values).numpy(), values)


def test_an_upload_has_arrived(cuda: FakeCuda) -> None:
    """The last transfer of pageable memory may come after cudaMemcpy: other streams would read too early."""
    array, stream, pinned = DeviceArray.of(np.ones(4, np.float32)), Stream(), Pinned(16)
    stream.download(pinned.array((4,), np.float32), array.pointer)
    stream.synchronize()
    assert pinned.array((4,), np.float32).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [np.complex64, np.uint64, np.dtype("U3")])
def test_other_dtypes_are_refused(cuda: FakeCuda, dtype: Any) -> None:
    with pytest.raises(UsageError, match="float16"):
        DeviceArray.of(np.zeros(3, dtype))
    with pytest.raises(UsageError, match="choose one of"):
        DeviceArray((2,), "fp8")


def test_a_buffer_is_seen_in_place(cuda: FakeCuda) -> None:
    room = Buffer(64)
    array = DeviceArray.at(room, (3, 2), "bf16")
    assert (array.pointer, array.element, array.nbytes) == (room.pointer, "bf16", 12)
    cuda.array(array.pointer, (6,), np.uint16)[:] = bfloat16.to_bits(np.arange(6, dtype=np.float32))
    assert array.numpy().tolist() == [[0, 1], [2, 3], [4, 5]]
    whole = DeviceArray.at(room, (16,), np.float32)
    assert (whole.pointer, whole.dtype) == (room.pointer, np.dtype(np.float32))
    with pytest.raises(UsageError, match="does not fit into 64 bytes"):
        DeviceArray.at(room, (17,), np.float32)
    del room, whole
    gc.collect()
    assert cuda.used == 64


def test_an_array_waits_for_the_work_that_makes_it(cuda: FakeCuda) -> None:
    stream, other, room = Stream(), Stream(), Buffer(16)
    for queue, value in ((stream, 7), (other, 9)):
        cuda.enqueue(queue.handle, lambda value=value: cuda.array(room.pointer, (4,), np.float32).fill(value))
    ready = DeviceArray.at(room, (4,), np.float32, ready=stream.record())
    assert ready.numpy().tolist() == [7, 7, 7, 7]
    assert (cuda.queued(other.handle), cuda.calls["cudaDeviceSynchronize"]) == (1, 0)
    unknown = DeviceArray.at(room, (4,), np.float32)
    assert unknown.numpy().tolist() == [9, 9, 9, 9]
    assert cuda.calls["cudaDeviceSynchronize"] == 1
