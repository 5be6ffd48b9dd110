"""Statistics against numpy, shapes of free axes, deviations, and a measurement in a process of its own."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import pickle
import random
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from facesdk import machine, measurement, measurement_gpu, nvidia
from facesdk.bench import Limits, Statistics, example_inputs, example_shapes, percentile, rows, time_calls
from facesdk.cuda import runtime
from facesdk.cuda.memory import Buffer
from facesdk.engine import GPUS, Engine, Tensor
from facesdk.errors import EngineError, EngineUnreadable, MissingDependency, ProviderUnavailable, UsageError
from facesdk.measurement import Job, measure_apart
from facesdk.verify import compare, deviation
from tests import plan_bundles, trt_execution
from tests.cuda_fake import FakeCuda, cudaError_t

QUICK = Limits(warmup_ms=0, iterations=3, duration=0)


def tensor(name, *shape, dtype="float32"):
    return Tensor(name, shape, np.dtype(dtype))


# -- statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 11, 99, 100, 101, 1000])
def test_statistics_are_numpys(count):
    durations = np.random.default_rng(count).lognormal(0, 1, count)
    found = Statistics.of(list(durations), wall_s=2.0)
    assert found.calls == count
    assert found.calls_per_s == count / 2
    assert found.min_ms == durations.min()
    assert found.max_ms == durations.max()
    assert found.mean_ms == pytest.approx(durations.mean())
    assert found.median_ms == pytest.approx(np.median(durations))
    for percent, value in ((90, found.p90_ms), (95, found.p95_ms), (99, found.p99_ms)):
        assert value == np.percentile(durations, percent, method="inverted_cdf")  # numpy's name for nearest rank


def test_percentiles_are_values_that_were_measured():
    rng = random.Random(4)
    for _ in range(200):
        ordered = sorted(rng.random() for _ in range(rng.randrange(1, 50)))
        percent = rng.randrange(0, 101)
        value = percentile(ordered, percent)
        assert value in ordered
        assert sum(other <= value for other in ordered) >= percent / 100 * len(ordered)


def test_warm_up_is_not_counted_and_both_limits_hold():
    calls = []
    assert time_calls(lambda: calls.append(1), QUICK).calls == 3
    assert len(calls) == 4  # one warm-up call at least
    found = time_calls(lambda: None, Limits(warmup_ms=0, iterations=1, duration=0.02))
    assert found.calls > 100
    assert found.calls / found.calls_per_s >= 0.02


@pytest.mark.parametrize(
    "wrong", [{"warmup_ms": -1}, {"iterations": 0}, {"duration": math.nan}, {"duration": math.inf}]
)
def test_limits_name_the_flag(wrong):
    with pytest.raises(UsageError, match="--" + next(iter(wrong)).replace("_", "-")):
        Limits(**wrong)


# -- shapes -----------------------------------------------------------------------------------------------------

IMAGE, VECTOR = tensor("image", "n", 3, "side", "side"), tensor("vector", "n", 512)


@pytest.mark.parametrize(
    ("typical", "options", "image", "vector"),
    [
        ({"image": (2, 3, 64, 64)}, {}, (2, 3, 64, 64), (2, 512)),
        ({"image": (2, 3, 64, 64)}, {"batch": 8}, (8, 3, 64, 64), (8, 512)),
        ({"image": (2, 3, 64, 64)}, {"given": {"image": (4, 3, 32, 32)}}, (4, 3, 32, 32), (4, 512)),
        ({"image": (2, 3, 64, 64)}, {"given": {"vector": (5, 512)}}, (5, 3, 64, 64), (5, 512)),
        ({"image": (2, 3, 64, 64)}, {"given": {"vector": (5, 512)}, "batch": 9}, (5, 3, 64, 64), (5, 512)),
        ({}, {"given": {"image": (1, 3, 16, 16)}}, (1, 3, 16, 16), (1, 512)),
    ],
)  # fmt: skip
def test_free_axes_are_sized(typical, options, image, vector):
    shapes = example_shapes((IMAGE, VECTOR), typical, **options)
    assert shapes == {"image": image, "vector": vector}
    assert rows((IMAGE, VECTOR), shapes) == image[0]


def test_rows_are_one_where_nothing_says_otherwise():
    assert example_shapes((VECTOR,), {}) == {"vector": (1, 512)}
    assert example_shapes((tensor("a", None, 2), tensor("b", None)), {}, batch=3) == {"a": (3, 2), "b": (3,)}


def test_fixed_shapes_have_no_rows():
    fixed = (tensor("x", 1, 3),)
    assert rows(fixed, example_shapes(fixed, {})) is None
    with pytest.raises(UsageError, match="no input has a free first axis"):
        example_shapes(fixed, {}, batch=2)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ((IMAGE,), {}, r"image float32\[n, 3, side, side\] has a free axis.*\n.*\n.*--shapes image:nx3xsidexside"),
        ((tensor("x", 1, None),), {}, r"give --shapes x:1x\?"),
        ((VECTOR,), {"given": {"vektor": (1, 512)}}, r"--shapes names vektor\n.*vector float32\[n, 512\]"),
        ((VECTOR,), {"given": {"vector": (1, 511)}}, "shape 1x511 does not fit input vector"),
        ((VECTOR,), {"given": {"vector": (512,)}}, "shape 512 does not fit"),
        ((VECTOR,), {"given": {"vector": (0, 512)}}, "shape 0x512 does not fit"),
        ((IMAGE,), {"given": {"image": (1, 3, 8, 9)}}, "shape 1x3x8x9 does not fit"),
        ((IMAGE, VECTOR), {"given": {"image": (1, 3, 8, 8), "vector": (2, 512)}}, "shape 2x512 does not fit"),
    ],
)
def test_shapes_that_cannot_be_are_named(inputs, options, says):
    with pytest.raises(UsageError, match=says):
        example_shapes(inputs, {}, **options)


def test_inputs_are_seeded_and_of_the_signatures_dtypes():
    inputs = (tensor("f", 100), tensor("u", 100, dtype="uint8"), tensor("i", 5, dtype="int64"), tensor("s"))
    shapes = example_shapes(inputs, {})
    first, second = example_inputs(inputs, shapes), example_inputs(inputs, shapes)
    for each in inputs:
        assert first[each.name].dtype == each.dtype
        assert first[each.name].shape == each.shape
        np.testing.assert_array_equal(first[each.name], second[each.name])
    assert first["u"].max() > 200
    assert not first["i"].any()


# -- deviations -------------------------------------------------------------------------------------------------


def test_deviation_in_numbers():
    found = deviation("y", np.array([0.0, 2.0, 4.0, 6.0]), np.array([0.0, 2.0, 4.5, 6.0]))
    assert (found.max_abs, found.mean_abs, found.nan, found.infinite) == (0.5, 0.125, 0, 0)
    assert found.max_in_std == pytest.approx(0.5 / statistics.pstdev([0, 2, 4, 6]))
    assert 0.99 < found.cosine < 1


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], {"max_abs": 0, "max_in_std": 0, "cosine": 1}),
        ([1, 2, 3], [-1, -2, -3], {"max_abs": 6, "cosine": -1}),
        ([1, 2, 3], [1, math.nan, 5], {"max_abs": 2, "nan": 1}),
        ([1, 2, math.nan], [1, 2, math.nan], {"max_abs": 0, "nan": 1}),
        ([1, math.inf, 3], [1, math.inf, 3], {"max_abs": 0, "infinite": 0}),
        ([1, 2, 3], [1, math.inf, 3], {"max_abs": 0, "infinite": 1}),
        ([5, 5], [5, 6], {"max_abs": 1, "max_in_std": math.inf}),
        ([0, 0], [0, 0], {"cosine": 1, "max_in_std": 0}),
        ([0, 0], [0, 1], {"cosine": 0}),
        ([math.nan], [math.nan], {"max_abs": 0, "mean_abs": 0, "nan": 1}),
        ([], [], {"max_abs": 0, "mean_abs": 0, "cosine": 1}),
    ],
)
def test_deviation_at_the_edges(reference, candidate, expected):
    found = dataclasses.asdict(deviation("y", np.array(reference, np.float32), np.array(candidate, np.float32)))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_deviation_of_large_integers_and_halves_does_not_overflow():
    assert deviation("y", np.array([255], np.uint8), np.array([0], np.uint8)).max_abs == 255
    assert deviation("y", np.array([6e4], np.float16), np.array([-6e4], np.float16)).max_abs == pytest.approx(
        12e4, rel=1e-3
    )


def test_engines_of_different_graphs_do_not_compare(save_graph):
    one = save_graph([("Relu", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, name="one")
    other = save_graph([("Relu", ["x"], ["z"])], {"x": [2]}, {"z": [2]}, name="other")
    wider = save_graph([("Concat", ["x", "x"], ["y"], {"axis": 0})], {"x": [2]}, {"y": [4]}, name="wider")
    arrays = {"x": np.ones(2, np.float32)}
    with Engine.open(one, "cpu") as a, Engine.open(other, "cpu") as b, Engine.open(wider, "cpu") as c:
        assert compare(a, a, arrays)[0].max_abs == 0
        with pytest.raises(EngineError, match=r"other\.onnx has no output y"):
            compare(a, b, arrays)
        with pytest.raises(EngineError, match="output y has shapes"):
            compare(a, c, arrays)


# -- measurements -----------------------------------------------------------------------------------------------


@pytest.fixture
def heavy(save_graph):
    """A graph with 32 MB of weights, so that its memory shows."""
    weights = {"w": np.zeros((2048, 4096), np.float32)}
    return save_graph([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 2048]}, {"y": ["n", 4096]}, weights=weights)


def test_a_process_of_its_own_counts_its_own_memory(heavy, save_graph):
    ballast = np.ones(60_000_000 // 8)  # of this process, and of no concern to the child
    small = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, name="small")
    large, little = (
        measure_apart(Job(path.stem, path, device="cpu", batch=2, limits=QUICK)) for path in (heavy, small)
    )
    assert large.batch == 2
    assert large.shapes == {"x": (2, 2048)}
    assert large.statistics.calls == 3
    assert large.rows_per_s == pytest.approx(2 * large.statistics.calls_per_s)
    assert large.load_ms > 0
    assert large.backend.startswith("ONNX Runtime")
    if sys.platform == "linux":
        assert large.memory_mb > 32
        assert large.peak_mb > large.memory_mb
        assert large.peak_mb - little.peak_mb > 25
        assert little.memory_mb < 32
        assert little.peak_mb < machine.peak_resident_mb()
    assert ballast[-1] == 1


def test_auto_is_chosen_before_and_its_reason_kept(save_graph, monkeypatch):
    path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", "m"]}, {"y": ["n", "m"]})
    found = measure_apart(Job("relu", path, limits=QUICK, shapes={"x": (1, 2)}))
    assert found.device == "cpu"
    assert found.reason.startswith("auto: ")


def test_bf16_states_its_error(save_graph):
    pytest.importorskip("openvino", reason="openvino is not installed")
    weights = {"w": np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)}
    path = save_graph([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 64]}, weights=weights)
    try:
        found = measure_apart(Job("matmul", path, device="openvino", precision="bf16", batch=4, limits=QUICK))
    except ProviderUnavailable as error:
        pytest.skip(error.fact)
    (difference,) = found.deviations
    assert 0 < difference.max_in_std < 0.1
    assert difference.cosine > 0.999


def test_errors_come_back_as_they_were(tmp_path, save_graph):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a graph")
    with pytest.raises(EngineUnreadable, match=r"bad\.onnx is not an ONNX file") as caught:
        measure_apart(Job("bad", bad, device="cpu", limits=QUICK))
    assert caught.value.remedy
    path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", "m"]}, {"y": ["n", "m"]})
    with pytest.raises(UsageError, match="--shapes x:nxm"):
        measure_apart(Job("relu", path, device="cpu", limits=QUICK))


def test_a_process_that_dies_is_an_error(save_graph, monkeypatch):
    path = save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    monkeypatch.setattr(measurement, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineError, match=r"ended with status -9\n.*want of memory"):
        measure_apart(Job("relu", path, device="cpu", limits=QUICK))


def test_what_lies_in_the_working_folder_is_not_imported(save_graph, tmp_path, monkeypatch):
    path = save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    (tmp_path / "numpy.py").write_text("raise SystemExit('wrong numpy')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert measure_apart(Job("relu", path, device="cpu", limits=QUICK)).statistics.calls == 3


# -- GPUs, which only seem to be here: the fake engine computes on the processor, CUDA's memory is the host's ------


class OnGpu:
    """An engine that calls itself one of a GPU, keeps what it was prepared with, and takes 8 MB there."""

    def __init__(self, path, device):
        self._engine, self._buffer = Engine.open(path, "cpu"), Buffer(8_000_000)
        self.device, self.description, self.reason = device, "a fake", "asked for"
        self.path, self.card, self.inputs = path, self._engine.card, self._engine.inputs
        self.calls, self.prepared = 0, 0

    def __call__(self, **arrays):
        self.calls += 1
        time.sleep(0.002)  # transfers
        return self._engine(**arrays)

    def prepare(self, **arrays):
        assert all(isinstance(array, np.ndarray) for array in arrays.values())
        logging.getLogger("facesdk").info("plain launches: the fake has no graphs")

        def once():
            self.prepared += 1
            logging.getLogger("facesdk").info("plain launches: the fake has no graphs")

        return once

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._buffer.close()


@pytest.fixture
def on_gpu(monkeypatch):
    """Opening on a GPU succeeds; the engines that were opened there."""
    real, opened = Engine.open, []

    def open_(path, device="auto", **options):
        if device not in GPUS:
            return real(path, device, **options)
        logging.getLogger("facesdk").info("relu runs on a fake")
        logging.getLogger("facesdk").warning("the processor runs NonZero")
        opened.append(OnGpu(path, device))
        return opened[-1]

    monkeypatch.setattr(Engine, "open", open_)
    return opened


@pytest.fixture
def relu(save_graph):
    return save_graph([("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})


@pytest.mark.parametrize("device", GPUS)
def test_a_gpu_is_measured_without_transfers_and_with_them(relu, on_gpu, monkeypatch, device):
    cuda = FakeCuda().install(monkeypatch)
    found = measurement.measure(Job("relu", relu, device=device, limits=QUICK))
    (engine,) = on_gpu
    assert (engine.prepared, engine.calls) == (4, 4)  # one call each that is not counted
    assert found.gpu_memory_mb == pytest.approx(8, abs=0.1)
    assert found.remarks == ("the processor runs NonZero", "plain launches: the fake has no graphs")
    excluded, included = found.lines()
    assert (excluded.transfers, included.transfers) == ("excluded", "included")
    assert excluded.statistics.min_ms < 2 <= included.statistics.min_ms
    assert excluded.load_ms == included.load_ms
    assert excluded.resident is included.resident is None
    assert logging.getLogger("facesdk").level == logging.NOTSET
    cuda.check()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_is_measured_as_it_runs(save_graph, tmp_path, monkeypatch, precision):
    """FaceSDK's own backend, on stand-ins of TensorRT and CUDA that compute."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    half = trt_execution.install(monkeypatch)
    bundle = plan_bundles.make_bundle(save_graph, tmp_path / "demo")
    plan_bundles.put_plan(bundle.folder / {"fp32": "step.onnx", "fp16": "step.fp16.onnx"}[precision])
    job = Job("demo/step", bundle.folder, "step", "tensorrt", precision, batch=2, limits=QUICK)
    found = measurement.measure(job)
    assert (found.device, found.shapes, found.remarks) == ("tensorrt", {"x": (2, 4)}, ())
    assert [line.transfers for line in found.lines()] == ["excluded", "included"]
    assert found.gpu_memory_mb > 0
    assert [deviation.output for deviation in found.deviations] == (["vector", "score"] if precision == "fp16" else [])
    assert all(deviation.max_abs < 0.01 for deviation in found.deviations)
    half.check()


def test_a_processor_has_one_line_without_transfers(relu):
    found = measurement.measure(Job("relu", relu, device="cpu", limits=QUICK))
    assert found.lines() == (found,)
    assert (found.transfers, found.resident, found.gpu_memory_mb, found.remarks) == ("", None, None, ())


def test_a_gpus_memory_is_not_told_without_cuda_python(relu, on_gpu, monkeypatch):
    FakeCuda().install(monkeypatch)

    def missing():
        raise MissingDependency("memory on the GPU needs cuda-python", remedy="pip install cuda-python")

    monkeypatch.setattr(runtime, "memory_mb", missing)
    assert measurement.measure(Job("relu", relu, device="cuda", limits=QUICK)).gpu_memory_mb is None


@pytest.mark.parametrize(("device", "reference"), [("cuda", "cuda"), ("tensorrt", "cpu"), ("tensorrt-rtx", "cpu")])
def test_a_plan_is_compared_with_fp32_on_the_processor(relu, on_gpu, monkeypatch, device, reference):
    FakeCuda().install(monkeypatch)
    found = measurement.measure(Job("relu", relu, device=device, precision="fp16", limits=QUICK))
    assert found.reference == reference
    assert [engine.device for engine in on_gpu] == [device] * (2 if reference == device else 1)
    assert found.deviations[0].max_abs == 0


class Waiting:
    """The part of cuda-python that says how to wait, and when it was told."""

    cudaDeviceScheduleSpin = 1  # noqa: N815

    def __init__(self, code=0):
        self.told, self._code = [], code

    def cudaSetDeviceFlags(self, flags):  # noqa: N802
        self.told.append(flags)
        return (cudaError_t(self._code),)


def ask(job, work=measurement.measure):
    """What the child answers."""
    answer = io.BytesIO()
    answer.close = lambda: None
    measurement.serve(io.BytesIO(pickle.dumps((work, job))), answer)
    return pickle.loads(answer.getvalue())


def test_the_child_spins_before_anything_touches_the_gpu(relu, monkeypatch):
    waiting = Waiting()
    monkeypatch.setattr(runtime, "bindings", lambda: waiting)

    def used(device):
        assert waiting.told == [1]
        raise EngineError("far enough")

    monkeypatch.setattr(measurement, "used_mb", used)
    assert ask(Job("relu", relu, device="tensorrt", limits=QUICK)).fact == "far enough"
    monkeypatch.undo()
    assert ask(Job("relu", relu, device="cpu", limits=QUICK)).spin_wait is None


@pytest.mark.parametrize(("code", "spins"), [(0, True), (35, False)])
def test_whether_the_child_spins_is_told(relu, on_gpu, monkeypatch, code, spins):
    FakeCuda().install(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "bindings", lambda: Waiting(code))
        assert measurement_gpu.wait_by_spinning() is spins
    monkeypatch.setattr(measurement, "wait_by_spinning", lambda: spins)
    assert ask(Job("relu", relu, device="cuda", limits=QUICK)).spin_wait is spins


def test_plans_are_looked_for_where_the_job_says(relu, monkeypatch, tmp_path):
    (tmp_path / "bundle.toml").write_text(
        f'[bundle]\nname = "one"\nsystem = "test"\nlicence = "MIT"\n[engines]\nrelu = {{ default = "{relu.name}" }}\n'
    )
    asked = []
    monkeypatch.setattr(Engine, "open", lambda path, device, **options: asked.append(options["plans"]))
    Job("relu", relu, device="tensorrt", plans=tmp_path / "plans").open()
    Job("relu", relu.parent, engine="relu", device="tensorrt", plans=tmp_path / "plans").open()
    Job("relu", relu, device="tensorrt").open()
    assert asked == [tmp_path / "plans"] * 2 + [None]


def test_a_plan_runs_once_before_it_is_measured(relu, on_gpu, monkeypatch):
    """What a plan does once on a GPU is in no figure."""
    asked = []
    monkeypatch.setattr(measurement, "_in_child", lambda work, job: asked.append((work.__name__, job.device)))
    for device in ("cpu", "cuda", "tensorrt", "tensorrt-rtx"):
        measure_apart(Job("relu", relu, device=device))
    assert asked == [
        ("measure", "cpu"), ("measure", "cuda"),
        ("_run_once", "tensorrt"), ("measure", "tensorrt"), ("_run_once", "tensorrt-rtx"), ("measure", "tensorrt-rtx"),
    ]  # fmt: skip
    FakeCuda().install(monkeypatch)
    assert ask(Job("relu", relu, device="tensorrt"), measurement._run_once) is None
    assert [(engine.prepared, engine.calls) for engine in on_gpu] == [(1, 0)]


@pytest.mark.parametrize("device", GPUS)
def test_a_gpu_that_is_not_here_is_an_error_of_the_child(relu, device):
    if nvidia.driver() is not None:
        pytest.skip("an NVIDIA driver is here")
    with pytest.raises((ProviderUnavailable, MissingDependency)) as caught:
        measure_apart(Job("relu", relu, device=device, limits=QUICK))
    assert caught.value.remedy


# -- the machine ------------------------------------------------------------------------------------------------


def test_the_processor_is_known():
    cpu = machine.processor()
    assert cpu.model
    assert 1 <= cpu.cores <= (os.cpu_count() or 1)


def test_versions_of_what_is_there_and_what_is_not():
    found = machine.versions(["numpy", "no-such-distribution"])
    assert found == {"numpy": np.__version__, "no-such-distribution": None}


@pytest.mark.parametrize(
    ("name", "variant"), [("onnxruntime", "onnxruntime-gpu"), ("opencv-python-headless", "opencv-python")]
)
def test_two_wheels_of_one_package_are_seen(tmp_path, monkeypatch, name, variant):
    before = machine.installed(name)
    metadata = tmp_path / f"{variant.replace('-', '_')}-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {variant}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.installed(name) == (*before, (variant, "1.2.3"))


def test_an_arm_processor_is_read(monkeypatch):
    files = {"/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n", "/proc/device-tree/model": "Jetson\0"}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    cpu = machine.processor.__wrapped__()
    assert (cpu.model, cpu.features) == ("Jetson", ("asimd", "asimddp"))


def test_memory_of_a_process_is_plausible():
    """In a process of its own: this one has freed memory to hand out again."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells")
    code = (
        "import numpy; from facesdk import machine\n"
        "before = machine.resident_mb()\n"
        "ballast = numpy.ones(100_000_000, numpy.uint8)\n"
        "assert 90 < machine.resident_mb() - before < 130\n"
        "del ballast\n"
        "assert machine.peak_resident_mb() - machine.resident_mb() > 50"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
