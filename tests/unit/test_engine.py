"""`Engine`: what it checks before a backend sees an array, what it opens, and what it refuses to open."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from facesdk.backends import Source, choice, onnxruntime_cuda
from facesdk.card import Card
from facesdk.cuda.memory import DeviceArray
from facesdk.engine import Engine, Tensor, prepared
from facesdk.errors import (
    EngineClosed,
    EngineError,
    EngineInputError,
    EngineUnreadable,
    ModelNotFound,
    ProviderUnavailable,
    UsageError,
)
from tests.cuda_fake import FakeCuda

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture
def add(save_graph):
    """The sum z of x and y, rows of three, as many in x as in y."""
    return save_graph([("Add", ["x", "y"], ["z"])], {"x": ["n", 3], "y": ["n", 3]}, {"z": ["n", 3]}, name="add")


@pytest.fixture
def engine(add):
    with Engine.open(add, "cpu") as engine:
        yield engine


# -- calling ------------------------------------------------------------------------------------------------


def test_a_call_returns_every_output_by_name(engine):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = engine(x=x, y=2 * x)
    assert list(result) == ["z"]
    np.testing.assert_array_equal(result["z"], 3 * x)


def test_free_axes_take_any_size_from_call_to_call(engine):
    for rows in (1, 5, 2, 0):
        assert engine(x=ones(rows, 3), y=ones(rows, 3))["z"].shape == (rows, 3)


def test_the_signature_names_free_axes(engine):
    assert [str(tensor) for tensor in engine.inputs] == ["x float32[n, 3]", "y float32[n, 3]"]
    assert repr(engine) == "Engine(add.onnx on cpu: x float32[n, 3], y float32[n, 3] -> z float32[n, 3])"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": ones(1, 3)}, "missing y float32[n, 3]"),
        ({"x": ones(1, 3), "y": ones(1, 3), "w": ones(1)}, "unknown w"),
        ({"x": ones(1, 3), "Y": ones(1, 3)}, "missing y float32[n, 3]; unknown Y"),
        ({"x": ones(1, 4), "y": ones(1, 3)}, "input x has shape (1, 4)"),
        ({"x": ones(3), "y": ones(1, 3)}, "input x has shape (3,)"),
        ({"x": ones(1, 1, 3), "y": ones(1, 3)}, "input x has shape (1, 1, 3)"),
        ({"x": ones(2, 3), "y": ones(1, 3)}, "input y has shape (1, 3)"),
        ({"x": ones(1, 3).astype(np.float64), "y": ones(1, 3)}, "input x is float64; float32 is wanted"),
        ({"x": [[1.0, 2.0, 3.0]], "y": ones(1, 3)}, "input x is a list, no array; float32 is wanted"),
        ({"x": np.float32(1), "y": ones(1, 3)}, "input x is a float32, no array"),
        ({"x": np.full((1, 3), np.nan, np.float32), "y": ones(1, 3)}, "input x holds 3 NaN or infinite values of 3"),
        ({"x": ones(1, 3), "y": np.array([[np.inf, -np.inf, 0]], np.float32)}, "input y holds 2 NaN"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named(engine, arrays, says):
    with pytest.raises(EngineInputError) as caught:
        engine(**arrays)
    assert says in caught.value.fact
    assert caught.value.remedy


def test_one_free_axis_has_one_size(engine):
    with pytest.raises(EngineInputError, match="n = 2"):
        engine(x=ones(2, 3), y=ones(5, 3))


def test_large_finite_values_are_neither_refused_nor_warned_of(engine):
    huge = np.full((1, 3), 3e38, np.float32)
    np.testing.assert_array_equal(engine(x=huge, y=-huge)["z"], 0)


def test_what_is_prepared_runs_on_copies(engine):
    x = ones(2, 3)
    again = engine.prepare(x=x, y=x)
    x[:] = np.nan
    assert again() is None
    with pytest.raises(EngineInputError, match="input x holds 6 NaN"):
        engine.prepare(x=x, y=x)


def test_prepared_arrays_are_copies():
    seen, x = [], ones(3)
    once = prepared(lambda arrays: seen.append(arrays["x"].sum()), {"x": x})
    x[:] = 0
    once()
    once()
    assert seen == [3, 3]


# -- arrays on a GPU ------------------------------------------------------------------------------------------


class OnGpu:
    """A backend that keeps what it was given."""

    device, description, outputs = "tensorrt", "none", ()
    inputs = (Tensor("x", ("n", 3), np.dtype(np.float32)), Tensor("y", ("n", 3), np.dtype(np.float32)))

    def run(self, arrays):
        self.got = arrays
        return {"z": "on the GPU"}

    def prepare(self, arrays):
        return lambda: self.run(arrays)

    def close(self):
        pass


class Foreign:
    """An array of another package on a GPU."""

    def __init__(self, shape, typestr="<f4", strides=None):
        facts = {"shape": shape, "typestr": typestr, "data": (4096, False), "version": 3, "strides": strides}
        self.__cuda_array_interface__ = facts


class Dlpack:
    """One that tells where it lies through DLPack, and cannot be exported."""

    def __init__(self, device):
        self.device = device

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, stream=None):
        raise BufferError("it needs its gradient")


@pytest.fixture
def on_gpu(tmp_path):
    return Engine(OnGpu(), Card(), tmp_path / "add.onnx", "test")


def test_arrays_on_a_gpu_reach_its_backend_as_they_are(on_gpu):
    foreign = Foreign((2, 3))
    assert on_gpu(x=foreign, y=ones(2, 3)) == {"z": "on the GPU"}
    assert on_gpu._backend.got["x"] is foreign
    on_gpu.prepare(x=foreign, y=ones(2, 3))()


def test_device_arrays_of_ours_fit(on_gpu, monkeypatch):
    fake = FakeCuda().install(monkeypatch)
    array = DeviceArray.of(ones(2, 3))
    on_gpu(x=array, y=array)
    wrong = DeviceArray.of(ones(2, 3), "bf16")
    with pytest.raises(EngineInputError, match="input x is bfloat16; float32 is wanted"):
        on_gpu(x=wrong, y=array)
    on_gpu._backend.got = None
    del array, wrong
    fake.check()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (Foreign((2, 4)), "input x has shape (2, 4)"), (Foreign((5, 3)), "input y has shape (2, 3)"),
        (Foreign((2, 3), "<f2"), "input x is float16; float32 is wanted"),
        (Foreign((2, 3), "<c8"), "input x is of type <c8"),
        (Foreign((2, 3), strides=(4, 8)), "input x on the GPU has strides (1, 2) for shape (2, 3)"),
        (Dlpack(2), "input x cannot be read: it needs its gradient"),
        (Dlpack(1), "input x is a Dlpack, no array; float32 is wanted"),
        ([[1.0]], "input x is a list, no array"),
    ],
)  # fmt: skip
def test_arrays_on_a_gpu_that_do_not_fit(on_gpu, x, says):
    with pytest.raises(EngineInputError) as caught:
        on_gpu(x=x, y=ones(2, 3))
    assert says in caught.value.fact
    assert caught.value.remedy


def test_arrays_on_a_gpu_are_not_for_processors(engine):
    for call in (engine, engine.prepare):
        with pytest.raises(EngineInputError, match=r"input x lies on a GPU, add\.onnx runs on cpu") as caught:
            call(x=Foreign((2, 3)), y=ones(2, 3))
        assert "NumPy array" in caught.value.remedy


# -- scan: the checks; what it computes is tested on every backend ---------------------------------------------


@pytest.fixture
def step(save_graph):
    """A carried s: next_s = s * t + c."""
    nodes = [("Mul", ["s", "t"], ["st"]), ("Add", ["st", "c"], ["next_s"])]
    with Engine.open(save_graph(nodes, {"s": [2], "t": [], "c": [2]}, {"next_s": [2]}), "cpu") as engine:
        yield engine


@pytest.mark.parametrize(
    ("carry", "xs", "constants", "says"),
    [
        ({"s": ones(2)}, {}, {"c": ones(2)}, "xs have [] rows"),
        ({"s": ones(2)}, {"t": ones(0)}, {"c": ones(2)}, "xs have [0] rows"),
        ({"s": ones(2)}, {"t": ones()}, {"c": ones(2)}, "xs have [0] rows"),
        ({"s": ones(2)}, {"t": [1.0, 2.0]}, {"c": ones(2)}, "xs have [0] rows"),
        ({"s": ones(2)}, {"t": ones(3), "c": ones(4, 2)}, {}, "xs have [3, 4] rows"),
        ({"s": ones(2), "c": ones(2)}, {"t": ones(3)}, {}, "has no output next_c"),
        ({"s": ones(2)}, {"t": ones(3)}, {}, "missing c"),
        ({"s": ones(2)}, {"t": ones(3)}, {"c": ones(2), "t": ones()}, "inputs t are given twice"),
        ({"s": ones(3)}, {"t": ones(3)}, {"c": ones(2)}, "input s has shape (3,)"),
        ({"s": ones(2)}, {"t": ones(3, 1)}, {"c": ones(2)}, "input t has shape (1,)"),
        ({"s": ones(2)}, {"t": np.array([1, np.nan], np.float32)}, {"c": ones(2)}, "input t holds 1 NaN"),
    ],
)  # fmt: skip
def test_scans_that_cannot_run_are_refused(step, carry, xs, constants, says):
    with pytest.raises(EngineInputError) as caught:
        step.scan(carry, xs, constants)
    assert says in caught.value.fact


def test_scans_take_arrays_of_the_host(step):
    with pytest.raises(EngineInputError, match="input s lies on a GPU"):
        step.scan({"s": Foreign((2,))}, {"t": ones(3)}, {"c": ones(2)})


def test_a_carry_fed_by_another_dtype_is_refused(save_graph):
    nodes = [("Cast", ["s"], ["next_s"], {"to": 11}), ("Add", ["s", "t"], ["u"])]
    path = save_graph(nodes, {"s": [2], "t": [2]}, {"next_s": [2], "u": [2]}, dtypes={"next_s": 11})
    with Engine.open(path, "cpu") as engine, pytest.raises(EngineInputError, match=r"next_s float64\[2\] cannot feed"):
        engine.scan({"s": ones(2)}, {"t": ones(4, 2)})


# -- life -----------------------------------------------------------------------------------------------------


def test_a_closed_engine_says_so_and_closes_twice(add):
    engine = Engine.open(add, "cpu")
    with engine:
        engine(x=ones(1, 3), y=ones(1, 3))
    engine.close()
    with pytest.raises(EngineClosed, match=r"add\.onnx was closed"):
        engine(x=ones(1, 3), y=ones(1, 3))
    with pytest.raises(EngineClosed):
        engine.scan({}, {"x": ones(1, 1, 3)})


# -- opening --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02 not a graph", b"PK\x03\x04" + bytes(60)])
def test_files_that_are_no_graph(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineUnreadable, match=r"bad\.onnx"):
        Engine.open(path, "cpu")


def test_a_truncated_graph(add, tmp_path):
    whole = add.read_bytes()
    for size in range(1, len(whole), 7):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:size])
        with pytest.raises(EngineUnreadable):
            Engine.open(path, "cpu")


def test_a_file_or_form_that_is_not_there(add, tmp_path):
    with pytest.raises(ModelNotFound):
        Engine.open(tmp_path / "absent.onnx")
    with pytest.raises(ModelNotFound, match=r"other\.onnx"):
        Engine.open(add, forms={"openvino": tmp_path / "other.onnx"})
    with pytest.raises(EngineUnreadable):
        Engine.open(tmp_path)


def test_a_form_is_taken_on_its_device_only(add, save_graph):
    form = save_graph([("Sub", ["x", "y"], ["z"])], {"x": ["n", 3], "y": ["n", 3]}, {"z": ["n", 3]}, name="sub")
    with Engine.open(add, "cpu", forms={"cpu": form}) as engine:
        np.testing.assert_array_equal(engine(x=ones(1, 3), y=ones(1, 3))["z"], 0)
    with Engine.open(add, "cpu", forms={"cuda": form}) as engine:
        np.testing.assert_array_equal(engine(x=ones(1, 3), y=ones(1, 3))["z"], 2)


def test_a_form_for_a_device_and_a_precision_goes_first(tmp_path):
    forms = {name: tmp_path / name for name in ("cpu", "openvino", "openvino-fp32", "cuda-fp16")}
    source = Source(tmp_path / "default", forms, None)
    taken = [
        (device, precision, dataclasses.replace(source, precision=precision).path_for(device).name)
        for device in ("cpu", "openvino", "cuda")
        for precision in ("fp32", "bf16")
    ]
    assert taken == [
        ("cpu", "fp32", "cpu"), ("cpu", "bf16", "cpu"), ("openvino", "fp32", "openvino-fp32"),
        ("openvino", "bf16", "openvino"), ("cuda", "fp32", "default"), ("cuda", "bf16", "default"),
    ]  # fmt: skip


def test_both_libraries_of_tensorrt_read_its_form(tmp_path):
    forms = {name: tmp_path / name for name in ("fp16", "tensorrt", "tensorrt-fp16", "cuda-fp16")}
    full = Source(tmp_path / "default", forms, None)
    half = dataclasses.replace(full, precision="fp16").in_precision()
    for device in ("tensorrt", "tensorrt-rtx"):
        assert (full.path_for(device).name, half.path_for(device).name) == ("tensorrt", "tensorrt-fp16")
    assert (half.path_for("cpu").name, half.path_for("cuda").name) == ("fp16", "cuda-fp16")
    assert (full.reference, half.reference) == (None, tmp_path / "default")


def test_the_form_for_fp32_is_what_runs(add, save_graph):
    pytest.importorskip("openvino", reason="openvino is not installed")
    form = save_graph([("Sub", ["x", "y"], ["z"])], {"x": ["n", 3], "y": ["n", 3]}, {"z": ["n", 3]}, name="sub")
    with Engine.open(add, "openvino", forms={"openvino": add, "openvino-fp32": form}) as engine:
        np.testing.assert_array_equal(engine(x=ones(1, 3), y=ones(1, 3))["z"], 0)


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"precision": "int4"}, {"threads": 0}, {"threads": -1}])
def test_options_without_meaning(add, options):
    with pytest.raises(UsageError):
        Engine.open(add, **options)


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda", "tensorrt", "tensorrt-rtx"])
def test_bf16_needs_openvino(add, device):
    with pytest.raises(UsageError, match='ask for device="openvino"'):
        Engine.open(add, device, precision="bf16")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_cuda_by_name_is_refused_at_once_where_it_is_not(add):
    start = time.perf_counter()
    with pytest.raises(ProviderUnavailable, match="device 'cuda' cannot be used here") as caught:
        Engine.open(add, "cuda")
    assert time.perf_counter() - start < 1
    assert caught.value.exit_code == 4
    assert "onnxruntime-gpu" in caught.value.remedy


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_a_silent_fallback_to_the_cpu_is_an_error(add, monkeypatch):
    monkeypatch.setattr("facesdk.backends.onnxruntime_cuda.first_gpu", lambda: None)  # as if one were here
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime_cuda, "require", lambda: None)
    with pytest.raises(ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        Engine.open(add, "cuda")


def test_threads_reach_the_session(add):
    with Engine.open(add, "cpu", threads=1) as engine:
        assert engine._backend._session.get_session_options().intra_op_num_threads == 1


# -- auto -----------------------------------------------------------------------------------------------------


def test_auto_without_openvino_is_the_cpu_and_says_why(add, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    with Engine.open(add) as engine:
        assert engine.device == "cpu"
        assert engine.reason.startswith("auto: the only backend here; openvino is not installed; no NVIDIA ")


def test_auto_with_a_broken_openvino_is_the_cpu_and_says_why(add, monkeypatch, tmp_path):
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    opened = choice.open_named

    def broken(source, device):
        if device == "openvino":
            raise ProviderUnavailable("device 'openvino' cannot be used here", cause="no libtbb")
        return opened(source, device)

    monkeypatch.setattr(choice, "open_named", broken)
    with Engine.open(add) as engine:
        assert (engine.device, engine.reason[:37]) == ("cpu", "auto: OpenVINO cannot be used, device")


@pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
class TestAutoMeasures:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
        return tmp_path / "home"

    @pytest.fixture
    def measured(self, monkeypatch):
        """The devices that were timed."""
        devices, timed = [], choice._measure
        monkeypatch.setattr(choice, "_measure", lambda source, card: devices.append(source.path) or timed(source, card))
        return devices

    def test_once_and_records_it(self, add, home, measured):
        with Engine.open(add) as first, Engine.open(add) as second:
            assert first.reason == second.reason
            assert first.device == second.device
            assert first.reason.startswith(f"auto: faster here, {first.device} ")
        assert measured == [add]
        (record,) = json.loads((home / "backend-timings.json").read_text()).values()
        assert record.keys() == {"cpu", "openvino"}

    def test_again_for_another_file_or_thread_count(self, add, measured):
        Engine.open(add).close()
        Engine.open(add, threads=1).close()
        add.write_bytes(add.read_bytes() + b"\x12\x01x")  # producer_name
        Engine.open(add).close()
        assert len(measured) == 3

    @pytest.mark.parametrize("damaged", ["", "[1]", "{}", "not json", None])
    def test_damaged_records_are_measured_again(self, add, home, measured, damaged):
        Engine.open(add).close()
        records = home / "backend-timings.json"
        key = next(iter(json.loads(records.read_text())))
        records.write_text(json.dumps({key: {"cpu": "fast"}}) if damaged is None else damaged)
        Engine.open(add).close()
        assert len(measured) == 2

    def test_where_nothing_can_be_recorded(self, add, home, caplog):
        home.write_text("a file, not a folder")
        with Engine.open(add) as engine:
            assert engine.reason.startswith("auto: faster here")
        assert "measured again at every start" in caplog.text

    def test_not_without_shapes(self, save_graph):
        path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", "width"]}, {"y": ["n", "width"]})
        with Engine.open(path) as engine:
            assert engine.device == "cpu"
            assert "input x float32[n, width] has a free axis of unknown size" in engine.reason

    def test_with_the_shapes_of_the_card(self, save_graph):
        card = Card(example_shapes={"x": (1, 7)})
        path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", "width"]}, {"y": ["n", "width"]}, card=card)
        with Engine.open(path) as engine:
            assert engine.reason.startswith("auto: faster here")


def test_a_graph_that_fails_while_running_is_an_engine_error(save_graph, capfd):
    nodes = [("Reshape", ["x", "shape"], ["y"])]
    path = save_graph(nodes, {"x": ["n", 3]}, {"y": [2, 3]}, weights={"shape": np.array([2, 3])})
    with Engine.open(path, "cpu") as engine:
        assert engine(x=ones(2, 3))["y"].shape == (2, 3)
        with pytest.raises(EngineError, match="failed to run the graph"):
            engine(x=ones(3, 3))
    assert "Reshape" in capfd.readouterr().err  # ONNX Runtime's own report


def test_the_card_of_the_default_file_is_the_engines(save_graph):
    card = Card(system="test", engine="relu", about="the positive part")
    path = save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, card=card)
    with Engine.open(Path(path), "cpu") as engine:
        assert engine.card == card
