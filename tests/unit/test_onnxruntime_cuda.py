"""ONNX Runtime on CUDA, without a GPU: bindings and memory run for real on the processor's, graphs on a strict fake."""

from __future__ import annotations

import ctypes
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from facesdk.backends import onnxruntime_cuda
from facesdk.backends.onnxruntime import OnnxRuntime
from facesdk.backends.onnxruntime_open import open_session, session_options, warn_of_processor
from facesdk.backends.onnxruntime_session import SessionBackend, run_errors
from facesdk.cuda.memory import DeviceArray
from facesdk.cuda.stream import Stream
from facesdk.errors import EngineClosed, EngineError, EngineUnreadable, OutOfMemory, ProviderUnavailable
from facesdk.plans.gpu import Gpu
from tests.cuda_fake import FakeCuda, LaunchFailure
from tests.ort_fake import CUDA, FakeOrt

ON_STEP = lambda step, steps: None  # noqa: E731


@pytest.fixture
def network(save_graph):
    """Convolution, global mean, dense layer: (n, 3, 8, 8) -> vector (n, 5) and mean (n, 4)."""
    rng = np.random.default_rng(7)
    weights = {"kernel": rng.normal(0, 0.2, (4, 3, 3, 3)), "dense": rng.normal(0, 0.3, (4, 5))}
    nodes = [
        ("Conv", ["image", "kernel"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("ReduceMean", ["a"], ["mean"], {"axes": [2, 3], "keepdims": 0}),
        ("MatMul", ["mean", "dense"], ["vector"]),
    ]
    single = {name: value.astype(np.float32) for name, value in weights.items()}
    outputs = {"vector": ["n", 5], "mean": ["n", 4]}
    return save_graph(nodes, {"image": ["n", 3, 8, 8]}, outputs, weights=single, name="network")


@pytest.fixture
def steps(save_graph):
    """next_p = p * t + c, next_q = q + p * v, with a scalar and a vector per step."""
    nodes = [
        ("Mul", ["p", "t"], ["pt"]), ("Add", ["pt", "c"], ["next_p"]),
        ("Mul", ["p", "v"], ["pv"]), ("Add", ["q", "pv"], ["next_q"]),
    ]  # fmt: skip
    inputs = {"p": ["n", 3], "q": ["n", 3], "t": [], "v": [3], "c": ["n", 3]}
    return save_graph(nodes, inputs, {"next_p": ["n", 3], "next_q": ["n", 3]}, name="steps")


@pytest.fixture
def picker(save_graph):
    """Rows of a table of three, by their numbers."""
    nodes = [("Gather", ["table", "chosen"], ["rows"])]
    table = {"table": np.arange(3, dtype=np.float32)}
    return save_graph(nodes, {"chosen": ["n"]}, {"rows": ["n"]}, weights=table, dtypes={"chosen": 7})


@pytest.fixture
def gpu(monkeypatch):
    """A driver with a GPU, and no memory of what was loaded before."""
    monkeypatch.setattr(onnxruntime_cuda, "first_gpu", lambda: Gpu("RTX 4090", "8.9", 24564.0))
    onnxruntime_cuda._preload.cache_clear()
    yield
    onnxruntime_cuda._preload.cache_clear()


@pytest.fixture
def fake(monkeypatch, gpu):
    return FakeOrt().install(monkeypatch)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda().install(monkeypatch)
    yield fake
    fake.check()


def images(count=2, seed=0):
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


def scan_arrays(count, rows=4, seed=3):
    draw = lambda *shape: np.random.default_rng(seed).random(shape, np.float32)  # noqa: E731
    return {"p": draw(rows, 3), "q": draw(rows, 3)}, {"t": draw(count), "v": draw(count, 3)}, {"c": draw(rows, 3)}


def step_by_step(path, carry, xs, constants):
    backend = OnnxRuntime(path, "cpu", None)
    for step in range(len(xs["t"])):
        made = backend.run({**carry, **constants, **{name: series[step, ...] for name, series in xs.items()}})
        carry = {name: made[f"next_{name}"] for name in carry}
    return carry


def bound_on_the_processor(path):
    """The code of a GPU's backend, on memory that this machine has."""
    return SessionBackend(open_session(path, session_options(None), "CPUExecutionProvider"), "cuda", "x", memory="cpu")


# -- bindings, for real ---------------------------------------------------------------------------------------


def test_bound_runs_equal_plain_ones(network):
    plain, bound = OnnxRuntime(network, "cpu", None), bound_on_the_processor(network)
    for count in (1, 3, 2):
        expected, got = plain.run({"image": images(count)}), bound.run({"image": images(count)})
        assert list(got) == list(expected) == ["vector", "mean"]
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values)


def test_results_of_bound_runs_belong_to_the_caller(network):
    backend = bound_on_the_processor(network)
    first = backend.run({"image": images(seed=1)})["vector"]
    kept = first.copy()
    backend.run({"image": images(seed=2)})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # writable


def test_bound_runs_take_any_layout(network):
    backend, image = bound_on_the_processor(network), images()
    expected = backend.run({"image": image})["vector"]
    frozen = image.copy()
    frozen.flags.writeable = False
    for variant in (np.asfortranarray(image), image[::-1][::-1], frozen):
        np.testing.assert_array_equal(backend.run({"image": variant})["vector"], expected)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_bound_runs_take_any_rank(save_graph, shape):
    backend = bound_on_the_processor(save_graph([("Add", ["x", "x"], ["y"])], {"x": shape}, {"y": shape}))
    made = backend.run({"x": np.full(shape, 2, np.float32)})["y"]
    assert made.shape == shape
    assert np.all(made == 4)


@pytest.mark.parametrize("kind", ["float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"])
def test_rows_of_every_dtype_are_bound_where_they_lie(save_graph, kind):
    onnx = pytest.importorskip("onnx")
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [("Cast", ["x"], ["f"], {"to": 1}), ("ReduceSum", ["f"], ["s"], {"keepdims": 0}),
             ("Add", ["a", "s"], ["next_a"])]  # fmt: skip
    path = save_graph(nodes, {"a": [], "x": [5]}, {"next_a": []}, dtypes={"x": code})
    series = np.random.default_rng(1).integers(0, 2, (7, 5)).astype(kind)
    made = bound_on_the_processor(path).scan({"a": np.zeros((), np.float32)}, {"x": series}, {}, ON_STEP)
    assert made["a"] == series.astype(np.float32).sum()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_scan_equals_single_calls_and_leaves_its_arguments(steps, count):
    carry, xs, constants = scan_arrays(count)
    before = json.dumps([{k: v.tolist() for k, v in group.items()} for group in (carry, xs, constants)])
    made = bound_on_the_processor(steps).scan(carry, xs, constants, ON_STEP)
    assert json.dumps([{k: v.tolist() for k, v in group.items()} for group in (carry, xs, constants)]) == before
    for name, values in step_by_step(steps, carry, xs, constants).items():
        np.testing.assert_array_equal(made[name], values)


def test_a_scan_of_series_of_any_layout(steps):
    carry, xs, constants = scan_arrays(4)
    expected = step_by_step(steps, carry, xs, constants)
    xs = {"t": xs["t"][::-1][::-1], "v": np.asfortranarray(xs["v"])}
    made = bound_on_the_processor(steps).scan({k: v[::-1][::-1] for k, v in carry.items()}, xs, constants, ON_STEP)
    np.testing.assert_array_equal(made["q"], expected["q"])


def test_threads_in_one_session_stay_apart(network, steps):
    runs, scans = bound_on_the_processor(network), bound_on_the_processor(steps)

    def work(seed):
        vector = runs.run({"image": images(seed=seed)})["vector"]
        return vector, scans.scan(*scan_arrays(3, seed=seed), ON_STEP)["q"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(24)))
    for seed, (vector, q) in enumerate(together):
        alone = work(seed)
        np.testing.assert_array_equal(vector, alone[0])
        np.testing.assert_array_equal(q, alone[1])


def test_an_exception_in_on_step_ends_the_scan_as_it_is(steps):
    done = []

    def stop(step, count):
        done.append(step)
        if step == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        bound_on_the_processor(steps).scan(*scan_arrays(5), stop)
    assert done == [1, 2]


def test_outputs_of_another_shape_than_the_carry_are_an_error(save_graph):
    nodes = [("Concat", ["p", "p"], ["next_p"], {"axis": 0}), ("Identity", ["t"], ["u"])]
    path = save_graph(nodes, {"p": ["n"], "t": []}, {"next_p": ["m"], "u": []})
    with pytest.raises(EngineError, match="failed to run"):
        bound_on_the_processor(path).scan({"p": np.ones(2, np.float32)}, {"t": np.ones(2, np.float32)}, {}, ON_STEP)


def test_a_prepared_call_keeps_its_own_arrays(picker):
    backend, chosen = bound_on_the_processor(picker), np.array([0, 2])
    call = backend.prepare({"chosen": chosen})
    chosen[:] = 99  # would be an error if it were read
    call()
    with pytest.raises(EngineError, match="failed to run"):
        backend.prepare({"chosen": chosen})


def test_a_closed_backend_says_so(network):
    backend = bound_on_the_processor(network)
    backend.close()
    with pytest.raises(EngineClosed):
        backend.run({"image": images()})
    with pytest.raises(EngineClosed):
        backend.prepare({"image": images()})


# -- the memory of a GPU --------------------------------------------------------------------------------------


def test_series_are_uploaded_whole_and_once(steps, fake):
    backend = OnnxRuntime(steps, "cuda", None)
    counts = []
    for count in (2, 9):
        before = fake.uploads
        arrays = scan_arrays(count)
        made = backend.scan(*arrays, ON_STEP)
        counts.append(fake.uploads - before)
        np.testing.assert_array_equal(made["q"], step_by_step(steps, *arrays)["q"])
    assert counts == [5, 5]  # two carried, two series, one constant


def test_what_the_processor_reads_is_that_of_each_step(steps, monkeypatch, gpu):
    FakeOrt(on_processor=("p",)).install(monkeypatch)
    backend = OnnxRuntime(steps, "cuda", None)
    for seed in (3, 4):
        arrays = scan_arrays(5, seed=seed)
        made = backend.scan(*arrays, ON_STEP)
        np.testing.assert_array_equal(made["q"], step_by_step(steps, *arrays)["q"])


@pytest.mark.parametrize("offset", [0, 4, 128])
def test_arrays_on_a_gpu_at_any_address_are_taken(network, monkeypatch, gpu, cuda, offset):
    FakeOrt(cuda=cuda).install(monkeypatch)
    room = DeviceArray.of(np.concatenate([np.zeros(offset // 4, np.float32), images().ravel()]))
    facts = {"data": (room.pointer + offset, False), "shape": images().shape, "typestr": "<f4", "version": 3}
    made = OnnxRuntime(network, "cuda", None).run({"image": SimpleNamespace(__cuda_array_interface__=facts)})
    expected = OnnxRuntime(network, "cpu", None).run({"image": images()})["vector"]
    np.testing.assert_array_equal(made["vector"].numpy(), expected)
    del made


def test_arrays_on_a_gpu_give_arrays_on_a_gpu(network, monkeypatch, gpu, cuda):
    FakeOrt(cuda=cuda).install(monkeypatch)
    expected = OnnxRuntime(network, "cpu", None).run({"image": images(3)})
    made = OnnxRuntime(network, "cuda", None).run({"image": DeviceArray.of(images(3))})
    assert {type(array) for array in made.values()} == {DeviceArray}
    for name, values in expected.items():
        assert made[name].dtype == values.dtype
        np.testing.assert_array_equal(made[name].numpy(), values)


def test_work_queued_on_a_gpu_array_is_waited_for(network, monkeypatch, gpu, cuda):
    FakeOrt(cuda=cuda).install(monkeypatch)
    backend, source, stream = OnnxRuntime(network, "cuda", None), DeviceArray.of(images()), Stream()
    target = DeviceArray(source.shape, source.element)
    stream.copy(target.pointer, source.pointer, source.nbytes)
    late = DeviceArray.at(target.buffer, target.shape, np.float32, ready=stream.record())
    made = backend.run({"image": late})["vector"].numpy()
    np.testing.assert_array_equal(made, OnnxRuntime(network, "cpu", None).run({"image": images()})["vector"])


def test_failed_work_on_a_gpu_array_is_an_error(network, monkeypatch, gpu):
    cuda = FakeCuda().install(monkeypatch)
    FakeOrt(cuda=cuda).install(monkeypatch)
    image, stream = DeviceArray.of(images()), Stream()

    def fail():
        raise LaunchFailure

    cuda.enqueue(stream.handle, fail)
    late = DeviceArray.at(image.buffer, image.shape, np.float32, ready=stream.record())
    with pytest.raises(EngineError, match="a call of the CUDA runtime failed"):
        OnnxRuntime(network, "cuda", None).run({"image": late})


def test_a_prepared_call_copies_arrays_on_a_gpu(picker, monkeypatch, gpu, cuda):
    FakeOrt(cuda=cuda).install(monkeypatch)
    chosen = DeviceArray.of(np.array([0, 2]))
    call = OnnxRuntime(picker, "cuda", None).prepare({"chosen": chosen})
    cuda.array(chosen.pointer, (2,), np.int64)[...] = 99
    call()
    del call


# -- CUDA graphs ----------------------------------------------------------------------------------------------


def test_no_graph_is_captured_where_nobody_asks(network, steps, fake, caplog):
    caplog.set_level(logging.INFO, "facesdk")
    OnnxRuntime(network, "cuda", None).prepare({"image": images()})()
    OnnxRuntime(steps, "cuda", None).scan(*scan_arrays(3), ON_STEP)
    assert all("enable_cuda_graph" not in options for options in fake.opened)
    assert [r.message for r in caplog.records if "plain launches" in r.message] == [
        f"plain launches: {onnxruntime_cuda.WHY_PLAIN}"
    ]


def test_a_scan_is_captured_once_and_replayed_by_later_ones(steps, fake):
    backend = OnnxRuntime(steps, "cuda", None, graph=True)
    for seed in range(3):
        arrays = scan_arrays(5, seed=seed)
        made = backend.scan(*arrays, ON_STEP)
        for name, values in step_by_step(steps, *arrays).items():
            np.testing.assert_array_equal(made[name], values)
    assert fake.captured == [1, 2]
    assert fake.replayed == [1, 2, 1, 2, 1] * 3


def test_other_shapes_are_captured_anew(steps, fake):
    backend = OnnxRuntime(steps, "cuda", None, graph=True)
    for rows in (4, 2):
        arrays = scan_arrays(3, rows)
        np.testing.assert_array_equal(backend.scan(*arrays, ON_STEP)["q"], step_by_step(steps, *arrays)["q"])
    assert fake.captured == [1, 2, 3, 4]


def test_a_scan_of_one_step_is_captured_in_one_direction(steps, fake):
    arrays = scan_arrays(1)
    made = OnnxRuntime(steps, "cuda", None, graph=True).scan(*arrays, ON_STEP)
    np.testing.assert_array_equal(made["p"], step_by_step(steps, *arrays)["p"])
    assert fake.captured == [1]


def test_threads_capture_for_themselves(steps, fake):
    backend = OnnxRuntime(steps, "cuda", None, graph=True)

    def work(seed):
        return backend.scan(*scan_arrays(3, seed=seed), ON_STEP)["q"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(12)))
    for seed, q in enumerate(together):
        np.testing.assert_array_equal(q, step_by_step(steps, *scan_arrays(3, seed=seed))["q"])


def test_single_calls_skip_graphs_and_prepared_ones_replay_theirs(network, fake):
    backend = OnnxRuntime(network, "cuda", None, graph=True)
    expected = OnnxRuntime(network, "cpu", None).run({"image": images()})["vector"]
    np.testing.assert_array_equal(backend.run({"image": images()})["vector"], expected)
    assert fake.captured == []
    call = backend.prepare({"image": images()})
    call()
    call()
    assert (fake.captured, fake.replayed) == ([1], [1, 1])


@pytest.mark.parametrize("verb", ["scan", "prepare"])
def test_a_failed_capture_is_logged_once_and_all_goes_on_without(steps, monkeypatch, gpu, caplog, verb):
    caplog.set_level(logging.INFO, "facesdk")
    message = "CUDA failure 900: operation not permitted when stream is capturing"
    fake = FakeOrt(capture_error=message).install(monkeypatch)
    backend, arrays = OnnxRuntime(steps, "cuda", None, graph=True), scan_arrays(4)
    carry, xs, constants = arrays
    if verb == "prepare":
        backend.prepare({**carry, **constants, **{name: series[0, ...] for name, series in xs.items()}})()
    for _ in range(2):
        made = backend.scan(*arrays, ON_STEP)
        np.testing.assert_array_equal(made["q"], step_by_step(steps, *arrays)["q"])
    assert [options.get("enable_cuda_graph") for options in fake.opened] == ["1", None]
    assert [r.message for r in caplog.records if "plain launches" in r.message] == [
        f"plain launches: ONNX Runtime captured no CUDA graph: {message}"
    ]


def test_a_graph_that_cannot_be_opened_for_capture_is_opened_without(network, monkeypatch, gpu, caplog):
    caplog.set_level(logging.INFO, "facesdk")
    fake = FakeOrt(graph_refused="not all compute graph nodes have been partitioned to CUDA").install(monkeypatch)
    backend = OnnxRuntime(network, "cuda", None, graph=True)
    assert backend.run({"image": images()})["vector"].shape == (2, 5)
    assert len(fake.opened) == 2
    assert "plain launches: ONNX Runtime allows no CUDA graph: not all compute graph nodes" in caplog.text


# -- what is missing ------------------------------------------------------------------------------------------


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_a_wheel_for_processors_is_named_with_what_to_install(network, gpu):
    start = time.perf_counter()
    with pytest.raises(ProviderUnavailable) as caught:
        OnnxRuntime(network, "cuda", None)
    assert time.perf_counter() - start < 1
    assert caught.value.fact == "device 'cuda' cannot be used here"
    assert caught.value.cause == f"this onnxruntime {onnxruntime.__version__} was built without CUDA"
    assert caught.value.remedy.startswith("pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'")


def test_two_wheels_at_once_are_named(network, monkeypatch, gpu):
    FakeOrt(providers=("CPUExecutionProvider",)).install(monkeypatch)
    wheels = (("onnxruntime", "1.31.1"), ("onnxruntime-gpu", "1.31.1"))
    monkeypatch.setattr(onnxruntime_cuda, "installed", lambda name: wheels)
    with pytest.raises(ProviderUnavailable, match="onnxruntime and onnxruntime-gpu are installed at once") as caught:
        OnnxRuntime(network, "cuda", None)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in caught.value.remedy


def test_a_missing_driver_is_named_before_anything_is_loaded(network, monkeypatch):
    fake = FakeOrt().install(monkeypatch)

    def none():
        raise ProviderUnavailable("no NVIDIA driver is installed", cause="libcuda.so.1 is not there", remedy="get one")

    monkeypatch.setattr(onnxruntime_cuda, "first_gpu", none)
    with pytest.raises(ProviderUnavailable) as caught:
        OnnxRuntime(network, "cuda", None)
    assert caught.value.cause == "no NVIDIA driver is installed: libcuda.so.1 is not there"
    assert caught.value.remedy == "get one; then check with: facesdk doctor"
    assert fake.opened == []


def test_the_library_that_is_missing_is_named(network, monkeypatch, gpu, capsys):
    missing = "libcudnn.so.9: cannot open shared object file: No such file or directory"
    FakeOrt(falls_back=True, prints=f"Failed to load libcudnn.so.9: {missing}\nPlease follow").install(monkeypatch)
    with pytest.raises(ProviderUnavailable) as caught:
        OnnxRuntime(network, "cuda", None)
    assert caught.value.cause == f"ONNX Runtime fell back to CPUExecutionProvider: {missing}"
    assert caught.value.remedy.startswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    assert capsys.readouterr().out == ""


def test_the_loader_is_asked_where_all_libraries_of_cuda_are_there(network, monkeypatch, gpu):
    FakeOrt(falls_back=True).install(monkeypatch)

    def load(path, mode):
        if "providers_cuda" in path:
            raise OSError("libcufft.so.12: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(ProviderUnavailable, match=r"CPUExecutionProvider: libcufft.so.12: cannot open"):
        OnnxRuntime(network, "cuda", None)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_the_real_silent_fallback_is_an_error(network, monkeypatch, gpu):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    with pytest.raises(ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        OnnxRuntime(network, "cuda", None)


@pytest.mark.parametrize(
    ("said", "cause", "remedy"),
    [
        (
            "/src/cuda_call.cc:114 onnxruntime::CudaCall CUDA failure 35: CUDA driver version is insufficient for CUDA "
            "runtime version ; GPU=-1 ; hostname=h ; expr=cudaSetDevice(info_.device_id);",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "update the driver of the GPU",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is not available. Install cuDNN, or set enable_cudnn=0",
            "cuDNN is not available. Install cuDNN, or set enable_cudnn=0",
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_file(network, monkeypatch, gpu, said, cause, remedy):
    FakeOrt(open_error=said).install(monkeypatch)
    with pytest.raises(ProviderUnavailable) as caught:
        OnnxRuntime(network, "cuda", None)
    assert caught.value.cause == cause
    assert caught.value.remedy.startswith(remedy)
    with pytest.raises(EngineError) as run, run_errors("ONNX Runtime"):
        raise RuntimeError(f"Non-zero status code\n{said}")
    assert run.value.cause == cause
    assert run.value.remedy.startswith("pip install" if "cuDNN" in cause else "start the program again")


def test_files_that_are_no_graph_are_unreadable_on_cuda_too(tmp_path, fake):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineUnreadable, match=r"broken.onnx cannot be loaded"):
        OnnxRuntime(tmp_path / "broken.onnx", "cuda", None)


def test_costly_operators_on_the_processor_are_logged(network, caplog):
    session = open_session(network, session_options(None, noted=True), "CPUExecutionProvider")
    warn_of_processor(network, session)  # here all of them are
    (record,) = caplog.records
    assert record.message == "network.onnx: the processor runs 1 Conv, 1 MatMul, for which the GPU has no kernel"


@pytest.mark.parametrize(
    "message",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 15728896",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
    ],
)
def test_a_full_gpu_is_out_of_memory(message):
    with pytest.raises(OutOfMemory, match="found no room") as caught, run_errors("ONNX Runtime"):
        raise RuntimeError(f"Non-zero status code\n{message}")
    assert caught.value.cause == message
