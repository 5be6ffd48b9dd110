"""Arrays cross the border to other packages and back without a copy, in order, and alive as long as they are used."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from facesdk.cuda import dlpack
from facesdk.cuda.memory import STORAGE, Buffer, DeviceArray
from facesdk.cuda.stream import Stream
from facesdk.cuda.views import View, read_capsule, view
from facesdk.errors import UsageError
from tests.cuda_fake import FakeCuda

HOST = (dlpack.CPU, 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda().install(monkeypatch)
    yield fake
    fake.check()


class Owner:
    """Memory of the host that can be seen to go."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def capsule(self, element: str) -> Any:
        return dlpack.capsule(self.values.ctypes.data, self.values.shape, element, HOST, self)


# -- capsules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", STORAGE)
def test_other_packages_read_our_capsules(element: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(STORAGE[element])
    owner = Owner(values)
    alive = weakref.ref(owner)
    tensor = torch.from_dlpack(owner.capsule(element))
    names = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
    assert str(tensor.dtype) == f"torch.{names.get(element, element)}"
    assert tensor.data_ptr() == values.ctypes.data
    bits = tensor.view(torch.int16).numpy().view(np.uint16) if element == "bf16" else tensor.numpy()
    np.testing.assert_array_equal(bits, values)
    del owner, bits
    gc.collect()
    assert alive() is not None
    tensor.view(torch.uint8)[...] = 1  # written in place
    assert values.view(np.uint8).min() == 1
    del tensor
    gc.collect()
    assert alive() is None


def test_numpy_reads_our_capsules() -> None:
    owner = Owner(np.arange(6, dtype=np.float32).reshape(2, 3))
    exporter = types.SimpleNamespace(__dlpack__=lambda **options: owner.capsule("fp32"), __dlpack_device__=lambda: HOST)
    kind = type("Exporter", (), {name: staticmethod(f) for name, f in vars(exporter).items()})
    seen = np.from_dlpack(kind())
    assert seen.ctypes.data == owner.values.ctypes.data
    np.testing.assert_array_equal(seen, owner.values)


def test_a_capsule_that_nobody_takes_lets_go() -> None:
    owner = Owner(np.zeros(3, np.float32))
    alive = weakref.ref(owner)
    capsule = owner.capsule("fp32")
    del owner
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_a_capsule_may_go_while_an_error_is_raised() -> None:
    owner = Owner(np.zeros(3, np.float32))
    alive = weakref.ref(owner)
    with pytest.raises(TypeError, match="PyCapsule"):
        int(owner.capsule("fp32"))
    del owner
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("element", STORAGE)
def test_capsules_of_the_gpu_say_where_they_lie(cuda: FakeCuda, element: str) -> None:
    array = DeviceArray((2, 3, 4), element)
    room, pointer = array.buffer.nbytes, array.pointer
    assert array.__dlpack_device__() == (2, 0)
    capsule = array.__dlpack__()
    tensor = dlpack.Tensor.of(capsule)
    assert (tensor.device_type, tensor.device_id, tensor.lanes) == (2, 0, 1)
    del array
    gc.collect()
    seen = read_capsule(capsule, "x")
    assert (seen.pointer, seen.shape, seen.strides, seen.element) == (pointer, (2, 3, 4), (12, 4, 1), element)
    assert cuda.used == room
    del capsule, seen, tensor
    assert cuda.used == 0


def test_empty_and_scalar_arrays_cross_too(cuda: FakeCuda) -> None:
    for shape in ((), (0, 3)):
        assert read_capsule(DeviceArray(shape, "fp32").__dlpack__(), "x").shape == shape


@pytest.mark.parametrize("stream", [None, 1, 2, "theirs"])
def test_the_consumer_waits_on_its_stream(cuda: FakeCuda, stream: Any) -> None:
    """None is the default stream, 1 too, 2 the one per thread, other numbers are addresses."""
    ours, theirs = Stream(), Stream()
    consumer = theirs.handle if stream == "theirs" else stream
    array = made(cuda, ours)
    capsule = array.__dlpack__(stream=consumer)
    read: list[Any] = []
    cuda.enqueue(consumer, lambda: read.extend(cuda.array(array.pointer, (4,), np.float32).tolist()))
    assert cuda.queued(ours.handle) > 0
    cuda.cudaStreamSynchronize(consumer)
    assert read == [8, 8, 8, 8]
    del capsule


def test_a_consumer_need_not_wait(cuda: FakeCuda) -> None:
    ours, theirs = Stream(), Stream()
    made(cuda, ours).__dlpack__(stream=-1)
    assert (cuda.calls["cudaStreamWaitEvent"], cuda.calls["cudaDeviceSynchronize"]) == (0, 0)
    assert cuda.queued(theirs.handle) == 0
    ours.close()


def test_without_a_mark_the_whole_device_is_waited_for(cuda: FakeCuda) -> None:
    DeviceArray((3,), "fp32").__dlpack__()
    assert cuda.calls["cudaDeviceSynchronize"] == 1


@pytest.mark.parametrize("options", [{"stream": 0}, {"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}])
def test_what_dlpack_forbids_or_we_cannot_is_refused(cuda: FakeCuda, options: dict[str, Any]) -> None:
    with pytest.raises(BufferError):
        DeviceArray((3,), "fp32").__dlpack__(**options)


def test_dlpack_options_that_ask_for_nothing_are_taken(cuda: FakeCuda) -> None:
    assert DeviceArray((3,), "fp32").__dlpack__(stream=-1, max_version=(1, 2), dl_device=(2, 0), copy=False)


def made(cuda: FakeCuda, stream: Stream) -> DeviceArray:
    """Four floats, 8, that a stream writes."""
    room = Buffer(16)
    cuda.enqueue(stream.handle, lambda: cuda.array(room.pointer, (4,), np.float32).fill(8))
    return DeviceArray.at(room, (4,), np.float32, ready=stream.record())


# -- views ----------------------------------------------------------------------------------------------------------


class Interface:
    """An array of another package that has `__cuda_array_interface__` alone."""

    def __init__(self, values: Any, **facts: Any) -> None:
        self.values = values
        self.__cuda_array_interface__ = {**values.__array_interface__, "version": 3, **facts}


class Capsules:
    """An array of another package that has DLPack alone, and notes the streams that it was asked for."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.streams = array, list[Any]()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=-1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("element", [element for element in STORAGE if element != "bf16"])
def test_arrays_with_an_interface_are_seen(cuda: FakeCuda, element: str) -> None:
    values = np.zeros((2, 3, 4), STORAGE[element])[:, ::2]
    seen = view(Interface(values), "x")
    assert (seen.pointer, seen.shape, seen.element) == (values.ctypes.data, (2, 2, 4), element)
    assert (seen.strides, seen.dtype) == ((12, 8, 1), values.dtype)
    assert not seen.is_packed()
    assert seen.is_packed((2,))
    assert view(Interface(values.copy()), "x").is_packed()


@pytest.mark.parametrize("element", STORAGE)
def test_our_own_arrays_are_seen_both_ways(cuda: FakeCuda, element: str) -> None:
    array = DeviceArray((2, 3), element)
    direct, crossed = view(array, "x"), view(Capsules(array), "x")
    where = [(v.pointer, v.shape, v.strides, v.element, v.dtype, v.is_packed()) for v in (direct, crossed)]
    assert where[0] == where[1]
    assert where[0][4] == array.dtype
    if element != "bf16":
        facts = array.__cuda_array_interface__
        assert facts["data"] == (array.pointer, False)
        assert np.dtype(facts["typestr"]) == array.dtype
    else:
        assert not hasattr(array, "__cuda_array_interface__")


@pytest.mark.parametrize(("stream", "asked"), [(0, 1), (-1, -1), (0x50000700, 0x50000700)])
def test_the_producer_is_told_our_stream(cuda: FakeCuda, stream: int, asked: int) -> None:
    theirs = Capsules(DeviceArray((3,), "fp32"))
    view(theirs, "x", stream)
    assert theirs.streams == [asked]


def test_the_stream_of_an_interface_is_waited_for(cuda: FakeCuda) -> None:
    ours, theirs, room = Stream(), Stream(), Buffer(16)
    cuda.enqueue(theirs.handle, lambda: cuda.array(room.pointer, (4,), np.float32).fill(2))
    array = Interface(cuda.array(room.pointer, (4,), np.float32), stream=theirs.handle)
    out = np.zeros(4, np.float32)
    assert view(array, "x", -1).pointer == room.pointer
    ours.synchronize()
    assert cuda.queued(theirs.handle) == 1
    view(array, "x", ours.handle)
    ours.download(out, room.pointer)
    ours.synchronize()
    assert out.tolist() == [2, 2, 2, 2]
    for stream in (None, ours.handle):
        view(Interface(array.values, stream=stream), "x", ours.handle)
    assert cuda.calls["cudaStreamWaitEvent"] == 1


def test_our_streams_wait_for_our_arrays(cuda: FakeCuda) -> None:
    first, second = Stream(), Stream()
    array, out = made(cuda, first), np.zeros(4, np.float32)
    view(array, "x", -1)
    assert cuda.calls["cudaStreamWaitEvent"] == 0
    second.download(out, view(array, "x", second.handle).pointer)
    second.synchronize()
    assert out.tolist() == [8, 8, 8, 8]
    assert array.__cuda_array_interface__["data"][0] == array.pointer


def test_an_interface_gives_out_what_is_there(cuda: FakeCuda) -> None:
    stream = Stream()
    facts = made(cuda, stream).__cuda_array_interface__
    assert facts.get("stream") is None
    assert cuda.queued(stream.handle) == 0


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (Interface(np.zeros(3, np.complex64)), "x is of type <c8"),
        (Interface(np.zeros(3, ">f4")), "x is of type >f4"),
        (np.zeros(3, np.float32), "x is not on a CUDA device"),
        ([1, 2], "x is a list"),
        (None, "x is a NoneType"),
    ],
)
def test_what_cannot_be_seen_is_told(array: Any, told: str) -> None:
    with pytest.raises(UsageError) as error:
        view(array, "x")
    assert told in str(error.value)
    assert error.value.remedy


@pytest.mark.parametrize("kind", [2, 13])
def test_an_array_on_another_gpu_is_refused_and_managed_memory_is_not(cuda: FakeCuda, kind: int) -> None:
    far = Capsules(DeviceArray((3,), "fp32"))
    far.__dlpack_device__ = lambda: (kind, 1)  # type: ignore[method-assign]
    if kind == 13:
        assert view(far, "x").shape == (3,)
        return
    with pytest.raises(UsageError, match="x is on CUDA device 1, and device 0 is in use"):
        view(far, "x")
    assert far.streams == []


def test_types_of_several_lanes_are_refused() -> None:
    owner = Owner(np.zeros(4, np.float32))
    capsule = owner.capsule("fp32")
    dlpack.Tensor.of(capsule).lanes = 4
    with pytest.raises(UsageError, match="type code 2 with 32 bits"):
        read_capsule(capsule, "x")


def test_an_axis_of_one_row_is_packed_with_any_stride() -> None:
    assert View(0, (1, 3), (99, 1), "fp32", None).is_packed()
    assert not View(0, (2, 3), (99, 1), "fp32", None).is_packed()
    assert View(0, (0, 3), (3, 1), "fp32", None).is_packed()
