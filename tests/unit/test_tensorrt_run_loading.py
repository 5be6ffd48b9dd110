"""Plans that load, are refitted, or are refused: with which words, and as which error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facesdk.backends import tensorrt_plan
from facesdk.backends.tensorrt import TensorRt
from facesdk.cuda import runtime
from facesdk.engine import Engine
from facesdk.errors import EngineUnreadable, FaceSDKError, MissingDependency, OutOfMemory, ProviderUnavailable
from tests import trt_execution as execution
from tests.trt_demo import PROFILE, arrays, same, step_graph
from tests.trt_stub import RTX, SURFACE, VERSIONS, Stub

pytest.importorskip("onnx")


@pytest.fixture
def graph(save_graph: Any) -> Path:
    return step_graph(save_graph)


@pytest.fixture(params=[VERSIONS[0], VERSIONS[-1], RTX])
def half(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[execution.Execution]:
    """The library; whatever a test leaves alive, or has misused, fails it."""
    half = execution.install(monkeypatch, request.param)
    yield half
    half.check()


def opened(half: Any, plan: Path, graph: Path, flags: tuple[str, ...] = ()) -> TensorRt:
    return TensorRt(plan, execution.key_of(plan, PROFILE, flags), graph, half.trt.__name__.replace("_", "-"))


def refused(half: Any, plan: Path, graph: Path, kind: type[FaceSDKError], flags: tuple[str, ...] = ()) -> FaceSDKError:
    with pytest.raises(kind) as caught:
        opened(half, plan, graph, flags)
    assert type(caught.value) is kind
    error = caught.value
    caught.value.__traceback__ = None  # it holds the frames, and they the engine
    return error


def test_a_file_that_is_no_plan(half: Any, graph: Path, tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    plan.write_bytes(b"\x00\x01")
    error = refused(half, plan, graph, EngineUnreadable)
    assert error.cause == execution.SERIALIZATION
    assert "a.plan" in error.fact
    assert half.trt.__version__ in error.fact
    assert error.remedy == "build it again: facesdk build demo --engine step --force"
    plan.write_bytes(b"")
    assert "empty" in refused(half, plan, graph, EngineUnreadable).cause


def test_words_are_those_of_this_plan(half: Any, graph: Path, tmp_path: Path) -> None:
    load = half.trt.answers["Runtime", "deserialize_cuda_engine"]

    def beside_another(runtime: Any, data: Any) -> Any:
        runtime._values["logger"].log(half.trt.ILogger.Severity.ERROR, "what befell another plan")
        return load(runtime, data)

    half.trt.answers["Runtime", "deserialize_cuda_engine"] = beside_another
    half.broken = "what befell this plan"
    plan = execution.write_plan(tmp_path / "a.plan", graph)
    assert refused(half, plan, graph, EngineUnreadable).cause == "what befell this plan"


def test_no_driver(half: Any, graph: Path, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph)
    half.no_driver = True
    error = refused(half, plan, graph, ProviderUnavailable)
    assert "nvidia-smi" in error.remedy
    assert "driver" in error.cause.lower()
    half.cuda.no_driver = True  # as it is in truth: then cuda-python says so first
    assert "cudaErrorInsufficientDriver" in refused(half, plan, graph, ProviderUnavailable).cause
    half.cuda.no_driver = False


def test_no_room(half: Any, graph: Path, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph)
    half.broken = execution.NO_MEMORY
    assert refused(half, plan, graph, OutOfMemory).cause == execution.NO_MEMORY


def test_a_version_compatible_plan_may_run_its_code(half: Any, graph: Path, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph, PROFILE, host_code=True)
    backend = opened(half, plan, graph, ("VERSION_COMPATIBLE",))
    same(backend.run(arrays()), Engine.open(graph, "cpu")(**arrays()))
    backend.close()
    assert "host code" in refused(half, plan, graph, EngineUnreadable).cause  # trust is given by the key alone


def test_a_stripped_plan_takes_its_weights_from_the_onnx_file(half: Any, graph: Path, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph, PROFILE, stripped=True)
    backend = opened(half, plan, graph, ("STRIP_PLAN", "REFIT_IDENTICAL"))
    same(backend.run(arrays()), Engine.open(graph, "cpu")(**arrays()))
    backend.close()


def test_weights_that_do_not_fit(half: Any, graph: Path, save_graph: Any, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph, PROFILE, stripped=True)
    other = save_graph([("Neg", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, name="other")
    error = refused(half, plan, other, EngineUnreadable, ("STRIP_PLAN",))
    assert error.cause == "no weights for w"
    assert "a.plan cannot take its weights from other.onnx" in error.fact
    other.write_bytes(b"no model")
    assert refused(half, plan, other, EngineUnreadable, ("STRIP_PLAN",)).cause == "the file holds no model"


def test_tensors_that_cannot_be_given(half: Any, graph: Path, save_graph: Any, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph, PROFILE, host=["index"])
    assert "tensor index is read by the processor" in refused(half, plan, graph, EngineUnreadable).fact
    nodes, bf16 = [("Identity", ["x"], ["y"])], {"x": 16, "y": 16}
    narrow = save_graph(nodes, {"x": [2]}, {"y": [2]}, name="narrow", dtypes=bf16)
    plan = execution.write_plan(tmp_path / "b.plan", narrow)
    assert "tensor x is BF16" in refused(half, plan, narrow, EngineUnreadable).fact


def test_rtx_compiles_before_the_first_run_and_once_for_all(
    monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path
) -> None:
    half = execution.install(monkeypatch, RTX)
    backend = opened(half, execution.write_plan(tmp_path / "a.plan", graph, PROFILE), graph)
    for rows in (1, 2):
        backend.run(arrays(rows))
    eager = half.trt.DynamicShapesKernelSpecializationStrategy.EAGER
    called = half.trt.called("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy")
    assert called == [[eager]]
    graphs = half.trt.called("IRuntimeConfig", "cuda_graph_strategy")
    assert graphs == [[half.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE]]
    ((cache,),) = half.trt.called("IRuntimeConfig", "set_runtime_cache")
    assert isinstance(cache, half.trt.IRuntimeCache)
    configs = {id(config) for (config,) in half.trt.called("ICudaEngine", "create_execution_context")}
    assert len(configs) == 1
    assert len(half.contexts) == 2
    backend.close()


# -- the real library of the package registry -----------------------------------------------------------------


def test_the_stand_in_has_no_more_than_the_real_rtx() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    stub = Stub(RTX, "tensorrt_rtx")
    for name in (
        "Runtime",
        "ICudaEngine",
        "IExecutionContext",
        "IRuntimeConfig",
        "IRuntimeCache",
        "Refitter",
        "OnnxParserRefitter",
    ):
        members = [member for member in vars(stub.kinds[name]) if not member.startswith("_")]
        assert [member for member in members if not hasattr(getattr(real, name), member)] == []
    for name in (
        "DataType",
        "TensorIOMode",
        "TensorLocation",
        "ExecutionContextAllocationStrategy",
        *SURFACE["rtx"]["enums"],
    ):
        known = getattr(real, name).__members__
        assert {kind.name: kind.value for kind in stub.kinds[name]} == {key: int(kind) for key, kind in known.items()}


def test_the_real_rtx_without_a_driver(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(runtime, "require", lambda: None)
    plan = execution.write_plan(tmp_path / "a.plan", graph)
    with pytest.raises(FaceSDKError) as caught:
        TensorRt(plan, execution.key_of(plan), graph, "tensorrt-rtx")
    error = caught.value
    if isinstance(error, ProviderUnavailable):
        assert "cudaError 35" in error.cause or "cudaError 100" in error.cause
    else:  # with a driver, it looks at the file
        assert isinstance(error, EngineUnreadable)
        assert "Serialization" in error.cause


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    plan = execution.write_plan(tmp_path / "a.plan", graph)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependency, match="cuda-python"):
        TensorRt(plan, execution.key_of(plan), graph, "tensorrt")


def test_an_input_of_another_rank_than_in_the_graph_keeps_the_plans_own() -> None:
    """TensorRT may tell a number without axes as one axis of 1."""
    enum = SimpleNamespace
    trt = enum(TensorIOMode=enum(INPUT=0, OUTPUT=1), TensorLocation=enum(DEVICE=0))
    engine = enum(
        num_io_tensors=1, get_tensor_name=lambda index: "scale", get_tensor_dtype=lambda name: enum(name="FLOAT"),
        get_tensor_location=lambda name: 0, get_tensor_shape=lambda name: (1,), get_tensor_mode=lambda name: 0,
    )  # fmt: skip
    graph = enum(inputs=[enum(name="scale", shape=())], outputs=[])
    ((scale,), ()) = tensorrt_plan._tensors(trt, engine, Path("p.plan"), graph, enum(profile={}))  # type: ignore[arg-type]
    assert scale.shape == (1,)
