"""Plans of TensorRT 10.0 to 11.4 and of TensorRT-RTX on a strict stand-in that computes: the bits of the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.cuda.memory import DeviceArray
from facesdk.engine import Engine
from facesdk.errors import EngineClosed, EngineError, EngineInputError, OutOfMemory
from tests import trt_execution as execution
from tests.trt_demo import PROFILE, arrays, open_plan, same, series, step_graph
from tests.trt_stub import RTX, VERSIONS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Make = Callable[..., tuple[Engine, Engine]]


@pytest.fixture(params=[*VERSIONS, RTX])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[execution.Execution]:
    """The library; whatever a test leaves alive, or has misused, fails it."""
    named = "version" in request.fixturenames
    half = execution.install(monkeypatch, request.getfixturevalue("version") if named else VERSIONS[-1])
    yield half
    half.check()


@pytest.fixture
def graph(save_graph: Any) -> Path:
    return step_graph(save_graph)


@pytest.fixture
def make(half: execution.Execution, graph: Path, tmp_path: Path) -> Iterator[Make]:
    """A plan's engine, and the CPU's of the same graph."""
    opened: list[Engine] = []

    def build(source: Path = graph, profile: Mapping[str, Any] = PROFILE, **facts: Any) -> tuple[Engine, Engine]:
        plan = tmp_path / f"{source.stem}{len(opened)}.plan"
        opened.append(open_plan(half, source, plan, profile, **facts))
        return opened[-1], Engine.open(source, "cpu")

    yield build
    for engine in opened:
        engine.close()


def test_every_version_runs_as_the_processor_does(half: Any, make: Make, version: str) -> None:
    engine, cpu = make()
    library = "TensorRT-RTX" if version == RTX else "TensorRT"
    assert engine.description == f"{library} {version} fp16, NVIDIA H200"
    assert list(map(str, engine.inputs)) == list(map(str, cpu.inputs))
    assert list(map(str, engine.outputs)) == list(map(str, cpu.outputs))
    for seed in range(4):
        same(engine(**arrays(2, seed)), cpu(**arrays(2, seed)))
    assert half.runs == [False, True, True, True]


def test_every_version_scans_as_the_processor_does(half: Any, make: Make, version: str) -> None:
    engine, cpu = make()
    for steps in (5, 4, 1):
        same(engine.scan(**series(steps)), cpu.scan(**series(steps)))
    assert half.runs == [False, False, True, True, True] + [True] * 5


# -- runs -----------------------------------------------------------------------------------------------------


def test_every_type_passes(make: Make, save_graph: Any) -> None:
    kinds = {"h": "FLOAT16", "i": "INT32", "l": "INT64", "u": "UINT8", "b": "BOOL", "c": "INT8"}
    dtypes = {name + end: getattr(onnx.TensorProto, kind) for name, kind in kinds.items() for end in ("", "2")}
    shapes = {name: [None, 3] for name in kinds}
    graph = save_graph(
        [("Concat", [name, name], [name + "2"], {"axis": 0}) for name in kinds],
        shapes, {name + "2": shape for name, shape in shapes.items()}, name="types", dtypes=dtypes,
    )  # fmt: skip
    engine, cpu = make(graph, {})
    values = np.random.default_rng(1).integers(0, 2, (5, 3))
    given = {tensor.name: values.astype(tensor.dtype) for tensor in cpu.inputs}
    same(engine(**given), cpu(**given))
    assert [tensor.shape for tensor in engine.inputs] == [(None, 3)] * 6


def test_results_are_the_callers_and_inputs_need_not_be_packed(make: Make) -> None:
    engine, cpu = make()
    wide = {**arrays(4, 1), "x": arrays(8, 2)["x"][::2], "k": arrays(2, 3)["k"].T}
    first, kept = engine(**wide), cpu(**wide)
    engine(**arrays(4, 4))
    same(first, kept)


def test_shapes_in_turn_keep_a_few_contexts_and_their_graphs(half: Any, make: Make) -> None:
    engine, cpu = make()
    for seed, rows in enumerate((8, 2, 8, 2, 1, 8, 1)):  # the largest first: a memory that grows moves, and graphs end
        same(engine(**arrays(rows, seed)), cpu(**arrays(rows, seed)))
    assert half.runs == [False, False, True, True, False, True, True]
    for rows in (1, 2, 3, 4, 5, 6, 7, 8) * 2:
        same(engine(**arrays(rows, rows)), cpu(**arrays(rows, rows)))
        assert len(half.contexts) <= 4


def test_what_repeats_allocates_and_tells_nothing(half: Any, make: Make) -> None:
    engine, _ = make()
    for _ in range(3):
        engine(**arrays())
    told, counted = len(half.trt.calls), half.cuda.calls.copy()
    for seed in range(5):
        engine(**arrays(2, seed))
    assert len(half.trt.calls) == told
    assert set(half.cuda.calls - counted) == {"cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize"}


@pytest.mark.parametrize(("rows", "name"), [(9, "x"), (16, "x")])
def test_a_shape_outside_the_profile(half: Any, make: Make, rows: int, name: str) -> None:
    engine, _ = make()
    told = len(half.trt.calls)
    with pytest.raises(EngineInputError) as caught:
        engine(**arrays(rows))
    assert f"input {name} has shape [{rows}, 4]" in caught.value.fact
    assert "step0.plan" in caught.value.fact
    assert caught.value.cause == "its shapes go from [1, 4] to [8, 4]"
    assert "facesdk build demo --engine step --profiles FILE" in caught.value.remedy
    with pytest.raises(EngineInputError, match=name):
        engine.scan(**series(2, rows))
    with pytest.raises(EngineInputError, match=name):
        engine.prepare(**arrays(rows))
    assert len(half.trt.calls) == told


def test_nan_passes_through(make: Make, save_graph: Any) -> None:
    graph = save_graph([("Log", ["x"], ["next_x"])], {"x": ["n"]}, {"next_x": ["n"]}, name="log")
    engine, cpu = make(graph, {})
    x = np.array([1, -1, 0, np.e], np.float32)
    for _ in range(3):
        got = engine(x=x)["next_x"]
        assert np.isnan(got[1])
        assert np.isneginf(got[2])
        assert got.tobytes() == cpu(x=x)["next_x"].tobytes()


# -- arrays on the GPU ----------------------------------------------------------------------------------------


class Foreign:
    """Another package's array: its values are still to be queued, on a stream of its own or on the default one."""

    def __init__(self, cuda: Any, values: Any, dlpack: bool) -> None:
        self.cuda, self.held = cuda, DeviceArray(values.shape, "int64" if values.dtype == np.int64 else "fp32")
        self.stream = cuda.cudaStreamCreateWithFlags(1)[1] if dlpack else 1
        cuda.enqueue(
            self.stream, lambda: cuda.array(self.held.pointer, values.shape, values.dtype).__setitem__(..., values)
        )
        if dlpack:
            self.__dlpack_device__ = self.held.__dlpack_device__
            self.__dlpack__ = self._ordered
        else:
            facts = {"shape": values.shape, "typestr": values.dtype.str, "data": (self.held.pointer, False)}
            self.__cuda_array_interface__ = {**facts, "version": 2, "strides": None}

    def _ordered(self, stream: int) -> Any:
        if stream != -1:
            event = self.cuda.cudaEventCreateWithFlags(0)[1]
            self.cuda.cudaEventRecord(event, self.stream)
            self.cuda.cudaStreamWaitEvent(stream, event, 0)
            self.cuda.cudaEventDestroy(event)
        return self.held.__dlpack__(stream=-1)

    def free(self) -> None:
        if self.stream != 1:
            self.cuda.cudaStreamDestroy(self.stream)


@pytest.mark.parametrize("names", [("x",), ("noise", "k"), ("x", "noise", "k", "index")])
@pytest.mark.parametrize("kind", ["own", "dlpack", "interface"])
def test_arrays_on_the_gpu_give_arrays_on_the_gpu(half: Any, make: Make, kind: str, names: tuple[str, ...]) -> None:
    engine, cpu = make()
    results, wanted, foreign = [], [], []
    for seed in range(3):
        given = arrays(2, seed)
        wanted.append(cpu(**given))
        on_gpu = {
            n: DeviceArray.of(given[n]) if kind == "own" else Foreign(half.cuda, given[n], kind == "dlpack")
            for n in names
        }
        foreign += on_gpu.values() if kind != "own" else ()
        results.append(engine(**{**given, **on_gpu}))
    engine.close()  # what was handed out stays
    for got, values in zip(results, wanted, strict=True):
        assert all(isinstance(array, DeviceArray) for array in got.values())
        same(got, values)
    for array in foreign:
        array.free()


# -- prepared calls -------------------------------------------------------------------------------------------


def test_a_prepared_call_moves_nothing(half: Any, make: Make) -> None:
    engine, cpu = make()
    given = arrays()
    call = engine.prepare(**given)
    given["x"][:] = 7
    same(engine(**arrays(2, 5)), cpu(**arrays(2, 5)))  # in buffers of its own
    before = half.cuda.calls.copy()
    half.runs.clear()
    for _ in range(3):
        call()
    assert half.runs == [True] * 3
    assert half.cuda.calls - before == {"cudaGraphLaunch": 3, "cudaStreamSynchronize": 3}
    engine.close()
    with pytest.raises(EngineClosed):
        call()


def test_a_prepared_call_is_for_its_thread(make: Make) -> None:
    engine, _ = make()
    call = engine.prepare(**arrays())
    with ThreadPoolExecutor(1) as pool, pytest.raises(EngineError, match="another thread"):
        pool.submit(call).result()


# -- scans ----------------------------------------------------------------------------------------------------


def test_progress_runs_one_step_behind_the_queue(half: Any, make: Make) -> None:
    engine, _ = make()
    for _ in range(2):  # plain steps, then graphs
        half.runs.clear()
        seen: list[tuple[int, int, int, bool]] = []

        def look(step: int, steps: int, seen: Any = seen) -> None:
            waiting = any(stream.queue for stream in half.cuda._streams.values())
            seen.append((step, steps, len(half.runs), waiting))

        engine.scan(**series(5), on_step=look)
        assert seen == [(1, 5, 1, True), (2, 5, 2, True), (3, 5, 3, True), (4, 5, 4, True), (5, 5, 5, False)]


def test_constants_and_series_are_moved_once(half: Any, make: Make) -> None:
    engine, _ = make()
    engine.scan(**series(4))
    before = half.cuda.calls.copy()
    engine.scan(**series(9))
    spent = half.cuda.calls - before
    # up: the carry, the constant, two series; down: the carry; between: a row of two series in each step
    assert spent["cudaMemcpyAsync"] == 4 + 1 + 2 * 9
    assert spent["cudaGraphLaunch"] == 9
    assert spent["cudaMalloc"] == 2  # longer series than before
    assert spent["cudaStreamSynchronize"] == 1
    before = half.cuda.calls.copy()
    engine.scan(**series(8))
    assert (half.cuda.calls - before)["cudaMalloc"] == 0


class Stopped(Exception):
    """Raised by a callback."""


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_a_callback_that_raises_ends_the_scan(half: Any, make: Make, stop: int) -> None:
    engine, cpu = make()

    def look(step: int, steps: int) -> None:
        if step == stop:
            raise Stopped

    for _ in range(2):
        half.runs.clear()
        with pytest.raises(Stopped):
            engine.scan(**series(6), on_step=look)
        assert len(half.runs) == min(stop + 1, 6)
        assert not any(stream.queue for stream in half.cuda._streams.values())
    same(engine.scan(**series(6)), cpu.scan(**series(6)))


def test_a_callback_may_run_engines(half: Any, make: Make) -> None:
    engine, cpu = make()
    larger, _ = make(memory=1 << 16)  # the thread's memory grows, and moves, under the scan

    def look(step: int, steps: int) -> None:
        if step == 4:
            same(larger(**arrays(2, step)), cpu(**arrays(2, step)))
        same(engine(**arrays(2, step)), cpu(**arrays(2, step)))
        if step == 3:
            same(engine.scan(**series(6)), cpu.scan(**series(6)))

    same(engine.scan(**series(8), on_step=look), cpu.scan(**series(8)))
    same(engine.scan(**series(7)), cpu.scan(**series(7)))


def test_a_callback_may_close_the_engine(make: Make) -> None:
    engine, cpu = make()
    same(engine.scan(**series(5), on_step=lambda step, steps: engine.close()), cpu.scan(**series(5)))
    with pytest.raises(EngineClosed):
        engine(**arrays())


def test_a_carry_that_changes_its_shape(make: Make, save_graph: Any) -> None:
    nodes = [("Concat", ["x", "r"], ["next_x"], {"axis": 0})]
    engine, _ = make(save_graph(nodes, {"x": ["n"], "r": [1]}, {"next_x": ["m"]}, name="grow"), {})
    with pytest.raises(EngineError, match=r"next_x has shape \[4\], and cannot feed x"):
        engine.scan({"x": np.zeros(3, np.float32)}, {"r": np.zeros((2, 1), np.float32)})


def test_a_carry_on_the_gpu(half: Any, make: Make) -> None:
    engine, cpu = make()
    given = series(3)
    held = DeviceArray.of(given["carry"]["x"])
    backend = engine._open_backend()
    got = backend.scan({"x": held}, given["xs"], given["constants"], lambda step, steps: None)
    same(got, cpu.scan(**given))


# -- memory and graphs ----------------------------------------------------------------------------------------


def test_engines_of_a_thread_compute_in_one_memory(half: Any, make: Make) -> None:
    sizes = (1 << 16, 1 << 20, 1 << 18)
    engines = [make(memory=size)[0] for size in sizes]
    _, cpu = make()
    for seed in range(4):
        for engine in engines:
            same(engine(**arrays(8, seed)), cpu(**arrays(8, seed)))
    assert 1 << 20 < half.cuda.used < (1 << 20) + 10_000
    # the first engine's first run came before the memory grew: it starts anew
    assert half.runs == [False] * 3 + [False, True, True] + [True] * 6
    engines[1].close()
    same(engines[0](**arrays()), cpu(**arrays()))
    for engine in engines:
        engine.close()
    assert half.cuda.used == 0


def test_memory_is_that_of_the_shapes_in_use(half: Any, make: Make) -> None:
    half.cuda.memory = 1 << 20
    engine, cpu = make(memory=1 << 21)  # at 8 rows
    for rows in (1, 2, 1, 1):
        same(engine(**arrays(rows, rows)), cpu(**arrays(rows, rows)))
    same(engine.scan(**series(5, 1)), cpu.scan(**series(5, 1)))
    with pytest.raises(OutOfMemory):
        engine(**arrays(8))
    for seed in range(3):
        same(engine(**arrays(1, seed)), cpu(**arrays(1, seed)))


@pytest.mark.parametrize("facts", [{"whole": True}, {"memory": 0}, {}])
def test_a_plan_that_cannot_tell_the_memory_of_shapes_gets_that_of_all(half: Any, make: Make, facts: Any) -> None:
    engine, cpu = make(**{"memory": 1 << 20, **facts})
    if not facts:  # "0 if error occurred", says TensorRT's header
        half.trt.answers["IExecutionContext", "update_device_memory_size_for_shapes"] = lambda context: 0
    for seed in range(3):
        same(engine(**arrays(1, seed)), cpu(**arrays(1, seed)))
    assert (half.cuda.used > 1 << 20) == ("memory" not in facts)


def test_10_0_keeps_the_memory_of_each_context(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    half = execution.install(monkeypatch, "10.0.1")
    with open_plan(half, graph, tmp_path / "old.plan", memory=1 << 16) as engine:
        for rows in (1, 2):
            engine(**arrays(rows))
        assert half.cuda.used > 2 << 16
    half.check()


def test_a_failed_capture_is_told_once(half: Any, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine, cpu = make()
    half.cuda.fail_capture = True
    with caplog.at_level(logging.INFO, "facesdk"):
        for seed in range(4):
            same(engine(**arrays(2, seed)), cpu(**arrays(2, seed)))
        same(engine(**arrays(3)), cpu(**arrays(3)))
        same(engine.scan(**series(5)), cpu.scan(**series(5)))
        engine.prepare(**arrays())()
    assert not any(half.runs)
    told = [record.getMessage() for record in caplog.records if "plain launches" in record.getMessage()]
    assert len(told) == 1
    assert "step0.plan" in told[0]
    assert "execute_async_v3" in told[0]


def test_one_failed_capture_is_tried_again(half: Any, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine, cpu = make()
    for seed in range(5):
        half.cuda.fail_capture = seed in (1, 2)
        same(engine(**arrays(2, seed)), cpu(**arrays(2, seed)))
    assert half.runs == [False, False, False, True, True]
    assert not caplog.records


def test_without_room_what_is_kept_goes_first(half: Any, make: Make) -> None:
    engine, cpu = make()
    for rows in (1, 2, 3):
        engine(**arrays(rows))
    half.no_room = 1
    same(engine(**arrays(4)), cpu(**arrays(4)))
    assert len(half.contexts) == 1
    half.no_room = 2
    with pytest.raises(OutOfMemory) as caught:
        engine(**arrays(5))
    assert "OutOfMemory" in caught.value.cause
    assert "nvidia-smi" in caught.value.remedy
    same(engine(**arrays(5)), cpu(**arrays(5)))


def test_a_gpu_that_is_full(half: Any, make: Make) -> None:
    small, cpu = make(memory=1 << 20)
    large, _ = make(memory=half.cuda.memory + 1, whole=True)
    same(small(**arrays()), cpu(**arrays()))
    with pytest.raises(OutOfMemory, match="no room for 1073"):
        large(**arrays())
    for seed in range(3):  # in memory that had to be made anew
        same(small(**arrays(2, seed)), cpu(**arrays(2, seed)))


@pytest.mark.parametrize("plain", [True, False])
def test_a_run_that_fails_gives_the_librarys_words(half: Any, make: Make, plain: bool) -> None:
    engine, cpu = make()
    if not plain:
        engine(**arrays())  # the next run captures
    half.broken = "[myelin] Error Code 1: (no kernel\n for this)"
    with pytest.raises(EngineError) as caught:
        engine(**arrays())
    assert caught.value.cause == "[myelin] Error Code 1: (no kernel for this)"
    assert "step0.plan failed to run" in caught.value.fact
    half.broken = execution.NO_MEMORY
    with pytest.raises(OutOfMemory):
        engine(**arrays())
    half.broken = "other words"
    with pytest.raises(EngineError) as caught:
        engine(**arrays())
    assert caught.value.cause == "other words"
    half.broken = ""
    same(engine(**arrays()), cpu(**arrays()))


def test_words_are_those_of_the_run_not_of_another_thread(half: Any, make: Make) -> None:
    engine, _ = make()
    logger = next(iter(half.engines))._values["logger"]
    logger.log(half.trt.ILogger.Severity.ERROR, "what befell another thread")
    half.broken = "what befell this run"
    with pytest.raises(EngineError) as caught:
        engine(**arrays())
    assert caught.value.cause == "what befell this run"


def test_words_of_loading_are_the_plans_own(half: Any, make: Make, tmp_path: Path) -> None:
    make()
    half.no_room = 1
    with pytest.raises(OutOfMemory, match="no room to run"):
        make()[0](**arrays())
    loggers = {id(engine._values["logger"]) for engine in half.engines}
    assert len(loggers) == 1  # TensorRT stays with the first, so that it has to live


def test_memory_that_is_refused(half: Any, make: Make) -> None:
    engine, cpu = make()

    def refuse(context: Any, memory: int, size: int) -> None:
        half._say(context, "the memory is too small")

    usual = half.trt.answers["IExecutionContext", "set_device_memory"]
    half.trt.answers["IExecutionContext", "set_device_memory"] = refuse
    with pytest.raises(EngineError, match="refuses the memory") as caught:
        engine(**arrays())
    assert caught.value.cause == "the memory is too small"
    half.trt.answers["IExecutionContext", "set_device_memory"] = usual
    same(engine(**arrays()), cpu(**arrays()))


def test_shapes_that_cannot_be_inferred(half: Any, make: Make) -> None:
    engine, cpu = make()

    def fail(context: Any) -> Any:
        half._say(context, "a Reshape does not fit")
        raise RuntimeError("Unable to infer shapes")

    usual = half.trt.answers["IExecutionContext", "infer_shapes"]
    half.trt.answers["IExecutionContext", "infer_shapes"] = fail
    with pytest.raises(EngineError, match="cannot tell the shapes") as caught:
        engine(**arrays())
    assert caught.value.cause == "a Reshape does not fit"
    half.trt.answers["IExecutionContext", "infer_shapes"] = usual
    same(engine(**arrays()), cpu(**arrays()))


def test_a_shape_that_is_known_late(make: Make) -> None:
    engine, _ = make(unsized=["next_x"])
    with pytest.raises(EngineError, match="the shape of output next_x is known only after a run"):
        engine(**arrays())


@pytest.mark.parametrize(
    ("member", "answer", "fact"),
    [
        ("set_input_shape", False, "refuses shape"),
        ("set_tensor_address", False, "refuses the address of"),
        ("infer_shapes", ["k", "x"], "is not told the shapes of k, x"),
    ],
)
def test_a_refusal(half: Any, make: Make, member: str, answer: Any, fact: str) -> None:
    engine, cpu = make()
    usual = half.trt.answers["IExecutionContext", member]
    half.trt.answers["IExecutionContext", member] = lambda *arguments: answer
    for call in (engine, engine.prepare):
        with pytest.raises(EngineError, match=fact):
            call(**arrays())
    half.trt.answers["IExecutionContext", member] = usual
    same(engine(**arrays()), cpu(**arrays()))
