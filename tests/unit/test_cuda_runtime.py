"""The CUDA runtime behind cuda-python: what is missing is told, with the command that brings it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from facesdk.cuda import memory, runtime
from facesdk.cuda.stream import Stream
from facesdk.errors import EngineError, FaceSDKError, MissingDependency, OutOfMemory, ProviderUnavailable
from tests.cuda_fake import FakeCuda, cudaError_t


def test_missing_cuda_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for what in (runtime.require, runtime.memory_mb, Stream, lambda: memory.Buffer(4)):
        with pytest.raises(MissingDependency, match="pip install cuda-python"):
            what()


@pytest.mark.parametrize(
    ("fake", "cause"),
    [
        (FakeCuda(no_driver=True), "cudaErrorInsufficientDriver: there is no NVIDIA driver, or it is older"),
        (FakeCuda(count=0), "cudaErrorNoDevice: the driver sees no GPU"),
    ],
    ids=["no driver", "no device"],
)
def test_a_machine_without_a_device_is_told_so(fake: FakeCuda, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install(monkeypatch)
    for what in (runtime.require, runtime.memory_mb, Stream, lambda: memory.Buffer(4), lambda: memory.Pinned(4)):
        with pytest.raises(ProviderUnavailable, match="no CUDA device") as error:
            what()
        assert error.value.cause.startswith(cause)
        assert "nvidia-smi" in error.value.remedy
    fake.check()


def test_a_driver_that_counts_no_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "cudaGetDeviceCount", lambda self: (cudaError_t.cudaSuccess, 0))
    FakeCuda().install(monkeypatch)
    with pytest.raises(ProviderUnavailable, match="the driver counts none"):
        runtime.require()


def test_a_package_that_raises_without_a_driver_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuda-python 12.8 does."""

    def count(self: FakeCuda) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(FakeCuda, "cudaGetDeviceCount", count)
    FakeCuda().install(monkeypatch)
    for what in (runtime.require, runtime.memory_mb, Stream, lambda: memory.Buffer(4)):
        with pytest.raises(ProviderUnavailable, match="no CUDA device") as error:
            what()
        assert error.value.cause == "Failed to dlopen libcuda.so.1"


def test_a_device_satisfies(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(memory=3_000_000).install(monkeypatch)
    runtime.require()
    room = memory.Buffer(1_000_000)
    assert runtime.memory_mb() == (2.0, 3.0)
    room.close()
    fake.check()


Answer = tuple[Any, ...]


@pytest.mark.parametrize(
    ("answer", "value"),
    [((0,), None), ((0, 5), 5), ((0, 5, 6), (5, 6)), ((0, None), None)],
    ids=["none", "one", "two", "null"],
)
def test_values_follow_the_code(answer: Answer, value: object) -> None:
    assert runtime.called((cudaError_t(answer[0]), *answer[1:])) == value


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InsufficientDriver", ProviderUnavailable),
        ("InitializationError", ProviderUnavailable),
        ("NoDevice", ProviderUnavailable),
        ("MemoryAllocation", OutOfMemory),
        ("IllegalAddress", EngineError),
    ],
)
def test_codes_become_errors(code: str, kind: type[FaceSDKError], monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(memory=4_000_000).install(monkeypatch)
    with pytest.raises(kind) as error:
        runtime.called((cudaError_t[f"cudaError{code}"], None))
    assert type(error.value) is kind
    told = "4.0 of 4.0 MB are free" if kind is OutOfMemory else f"cudaError{code}"
    assert told in error.value.cause
    assert error.value.remedy


def test_a_driver_older_than_cuda_python_is_told_of_the_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(no_driver=True).install(monkeypatch)
    with pytest.raises(ProviderUnavailable) as error:
        runtime.require()
    assert error.value.remedy.endswith("where it names CUDA 12: pip install 'cuda-python<13'")


@pytest.mark.parametrize(("code", "again"), [("IllegalAddress", True), ("LaunchFailure", True), ("NotReady", False)])
def test_an_error_that_stays_is_told_so(code: str, again: bool) -> None:
    with pytest.raises(EngineError) as error:
        runtime.called((cudaError_t[f"cudaError{code}"],))
    assert error.value.remedy.startswith("start the program again") == again


def test_the_size_of_what_found_no_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(memory=8_192_000).install(monkeypatch)
    held = memory.Buffer(7_780_000)
    with pytest.raises(OutOfMemory) as error:
        memory.Buffer(1_651_500)
    assert error.value.fact == "the GPU has no room for 1.7 MB"
    assert error.value.cause == "0.4 of 8.2 MB are free"
    assert error.value.remedy == "close other programs that use the GPU, or take a smaller batch"
    held.close()
    assert memory.Buffer(1_651_500).nbytes == 1_651_500
    fake.check()


def test_no_room_is_told_where_free_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(memory=10).install(monkeypatch)
    fake.failing["cudaMemGetInfo"] = "Unknown"
    with pytest.raises(OutOfMemory, match=r"no room for 0\.1 MB") as error:
        memory.Buffer(100_000)
    assert error.value.cause == ""


# -- cuda-python itself, on a machine without a driver --------------------------------------------------------------


@pytest.fixture
def real() -> Any:
    return pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def driverless(real: Any) -> Any:
    try:
        code = int(real.cudaGetDeviceCount()[0])
    except RuntimeError:
        pytest.skip("this cuda-python raises without a driver")
    if not code:
        pytest.skip("a CUDA device is here")
    return real


def said(what: Callable[[], object]) -> str:
    """Why no device can be used, empty where one can."""
    try:
        what()
    except ProviderUnavailable as error:
        return error.cause
    return ""


def test_cuda_python_itself_is_understood(real: Any) -> None:
    start = time.perf_counter()
    told = [said(what) for what in (runtime.require, Stream, runtime.memory_mb, lambda: memory.Buffer(4))]
    assert time.perf_counter() - start < 1
    assert all(told) or not any(told)


def test_cuda_python_has_every_call_and_constant_of_the_stand_in(real: Any) -> None:
    names = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 25
    assert [name for name in names if not hasattr(real, name)] == []
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"):
        ours, theirs = getattr(FakeCuda, kind), getattr(real, kind)
        assert {member.name: int(member) for member in ours} == {m.name: int(getattr(theirs, m.name)) for m in ours}
    values = [name for name in names if isinstance(getattr(FakeCuda, name), int)]
    assert {name: getattr(FakeCuda, name) for name in values} == {name: int(getattr(real, name)) for name in values}


#: what the SDK calls, with arguments of the kinds that it gives
CALLS: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (), "cudaGetDevice": (), "cudaMemGetInfo": (), "cudaMalloc": (16,), "cudaHostAlloc": (16, 0),
    "cudaDeviceSynchronize": (), "cudaMemcpy": (512, 1024, 0, "cudaMemcpyHostToDevice"), "cudaFree": (0,),
    "cudaMemcpyAsync": (512, 1024, 0, "cudaMemcpyDeviceToDevice", 1), "cudaFreeHost": (0,),
    "cudaStreamCreateWithFlags": (1,), "cudaStreamSynchronize": (1,), "cudaEventCreateWithFlags": (0,),
    "cudaStreamIsCapturing": (1,),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_stand_in_answers_in_the_form_of_cuda_python(driverless: Any, name: str) -> None:
    """The same arguments are accepted, and as many values follow the code."""

    def answer(module: Any) -> tuple[Any, ...]:
        arguments = [getattr(module.cudaMemcpyKind, a) if isinstance(a, str) else a for a in CALLS[name]]
        answered = getattr(module, name)(*arguments)
        assert isinstance(answered, tuple)
        return answered

    ours, theirs = answer(FakeCuda(no_driver=True)), answer(driverless)
    assert len(ours) == len(theirs)
    assert set(ours[1:]) <= {None}
    assert isinstance(theirs[0].name, str)
    assert isinstance(int(theirs[0]), int)
