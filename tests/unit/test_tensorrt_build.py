"""The builder's wrapper against a strict stand-in of TensorRT 10.0 to 11.4: what it asks, and what it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from facesdk.errors import EngineError, EngineUnreadable, ProviderUnavailable, UnsupportedOperator
from facesdk_engines.tensorrt.build import Request, build
from facesdk_engines.tensorrt.options import BuildOptions
from tests.trt_stub import VERSIONS, Stub

PROFILE = {"x": ((1, 4), (2, 4), (8, 4))}
LAYERS = (
    "Layers:\nName: mha_0, LayerType: kgen, Metadata: [ONNX Layer: soft_a]\n"
    "Name: other, LayerType: kgen, Metadata: [ONNX Layer: soft_b]"
)


def nothing(share: float, phase: str) -> None:
    """Nobody looks."""


class Network:
    """Products around two softmaxes, and two softmaxes that are of no attention."""

    def __init__(self, trt: Stub) -> None:
        self.layers = [
            self._layer(trt, "MATRIX_MULTIPLY", "qk", [], "s"), self._layer(trt, "CAST", "cast", ["s"], "s32"),
            self._layer(trt, "SOFTMAX", "soft_a", ["s32"], "p"), self._layer(trt, "MATRIX_MULTIPLY", "pv", ["p"], "o"),
            self._layer(trt, "SOFTMAX", "soft_b", ["o"], "p2"),
            self._layer(trt, "MATRIX_MULTIPLY", "pv2", ["p2"], "o2"), self._layer(trt, "SOFTMAX", "last", ["o2"], "y"),
            self._layer(trt, "ACTIVATION", "relu", ["o2"], "r"), self._layer(trt, "SOFTMAX", "gate", ["r"], "g"),
            self._layer(trt, "MATRIX_MULTIPLY", "gated", ["g"], "z"),
        ]  # fmt: skip

    @staticmethod
    def _layer(trt: Stub, kind: str, name: str, inputs: list[str], output: str) -> Any:
        layer = trt.ILayer()
        layer._values.update(
            type=trt.LayerType[kind], name=name, metadata=f"[ONNX Layer: {name}]", num_inputs=len(inputs),
            num_outputs=1, inputs=inputs, output=output,
        )  # fmt: skip
        return layer


def tensor(trt: Stub, name: str) -> Any:
    made = trt.ITensor()
    made._values["name"] = name
    return made


def library(monkeypatch: pytest.MonkeyPatch, version: str = VERSIONS[-1], log: str = LAYERS) -> Stub:
    """A TensorRT whose builder succeeds, and says `log`."""
    trt = Stub(version)
    network = Network(trt)
    answers = trt.answers
    loggers: list[Any] = []
    answers["Builder", "__init__"] = lambda self, logger: loggers.append(logger)
    for member, kind in (
        ("create_network", "INetworkDefinition"), ("create_builder_config", "IBuilderConfig"),
        ("create_optimization_profile", "IOptimizationProfile"),
    ):  # fmt: skip
        answers["Builder", member] = lambda self, *_, kind=kind: getattr(trt, kind)()
    answers["OnnxParser", "parse_from_file"] = lambda self, path: True
    answers["INetworkDefinition", "num_layers"] = lambda self: len(network.layers)
    answers["INetworkDefinition", "get_layer"] = lambda self, index: network.layers[index]
    answers["ILayer", "get_input"] = lambda self, index: tensor(trt, self._values["inputs"][index])
    answers["ILayer", "get_output"] = lambda self, index: tensor(trt, self._values["output"])
    answers["IBuilderConfig", "add_optimization_profile"] = lambda self, profile: 0
    answers["IBuilderConfig", "create_timing_cache"] = lambda self, data: _cache(trt, data)
    answers["IBuilderConfig", "set_timing_cache"] = lambda self, cache, ignore: cache._values["data"] != b"foreign"
    answers["IBuilderConfig", "get_timing_cache"] = lambda self: trt.ITimingCache()
    answers["ITimingCache", "serialize"] = lambda self: b"times"

    def finish(self: Any, network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            monitor.step_complete("Building", step)
        monitor.phase_finish("Building")
        if log:
            loggers[0].log(trt.ILogger.Severity.VERBOSE, log)
        return b"PLAN"

    answers["Builder", "build_serialized_network"] = finish
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def _cache(trt: Stub, data: bytes) -> Any:
    cache = trt.ITimingCache()
    cache._values["data"] = data
    return cache


def request(folder: Path, **options: Any) -> Request:
    cache = folder / "times.cache"
    return Request(folder / "m.onnx", folder / "m.plan", BuildOptions("tensorrt", **options), PROFILE, cache)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    trt = library(monkeypatch, version)
    shares: list[float] = []
    built = build(request(tmp_path), lambda share, phase: shares.append(share))
    assert (tmp_path / "m.plan").read_bytes() == b"PLAN"
    assert (tmp_path / "times.cache").read_bytes() == b"times"
    assert (built.version, built.layers, built.plan_size, built.flags) == (version, 10, 4, ())
    assert built.attentions is not None
    assert (built.attentions.fused, built.attentions.decomposed) == (("soft_a",), ("soft_b",))
    assert shares == [0, 0.5, 1]
    strongly = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert trt.called("Builder", "create_network") == [[1 << int(strongly)]]
    assert trt.called("IOptimizationProfile", "set_shape") == [["x", *PROFILE["x"]]]
    assert trt.called("IBuilderConfig", "clear_flag") == [[trt.BuilderFlag.TF32]]
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    assert trt.called("IBuilderConfig", "set_preview_feature") == ([[resize, True]] if resize else [])


@pytest.mark.parametrize("version", ["10.0.1", "11.4.0"])
def test_options_become_flags_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    trt = library(monkeypatch, version)
    options = {"strip": True, "tf32": True, "version_compatible": True, "hardware": "ampere", "level": 1}
    built = build(request(tmp_path, **options, workspace_mb=64), nothing)
    assert built.flags == ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL")
    assert trt.called("IBuilderConfig", "set_flag") == [[trt.BuilderFlag[name]] for name in built.flags]
    assert trt.called("IBuilderConfig", "clear_flag") == []
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert trt.called("IBuilderConfig", "hardware_compatibility_level") == [[level]]
    assert trt.called("IBuilderConfig", "builder_optimization_level") == [[1]]
    limit = [trt.MemoryPoolType.WORKSPACE, 64_000_000]
    assert trt.called("IBuilderConfig", "set_memory_pool_limit") == [limit]


def test_a_level_that_came_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library(monkeypatch, "10.8.0")
    with pytest.raises(EngineError, match=r"10\.8\.0 has no hardware level SAME_COMPUTE_CAPABILITY"):
        build(request(tmp_path, hardware="capability"), nothing)
    library(monkeypatch, "10.9.0")
    assert build(request(tmp_path, hardware="capability"), nothing).plan_size == 4


def test_times_of_another_gpu_are_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = library(monkeypatch)
    (tmp_path / "times.cache").write_bytes(b"foreign")
    build(request(tmp_path), nothing)
    assert trt.called("IBuilderConfig", "create_timing_cache") == [[b"foreign"], [b""]]
    assert (tmp_path / "times.cache").read_bytes() == b"times"


def test_a_gpu_tells_the_layers_that_a_log_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = library(monkeypatch, log="")
    layers = {"Layers": [{"Name": "_gemm_mha_v2", "Metadata": "[ONNX Layer: soft_a]"}, "reshape"]}
    trt.answers["Runtime", "deserialize_cuda_engine"] = lambda self, plan: trt.ICudaEngine()
    trt.answers["ICudaEngine", "create_engine_inspector"] = lambda self: trt.EngineInspector()
    trt.answers["EngineInspector", "get_engine_information"] = lambda self, form: json.dumps(layers)
    found = build(request(tmp_path), nothing).attentions
    assert found is not None
    assert str(found) == "attention: 1 fused, 1 not"


def test_an_attention_that_is_one_node_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = library(monkeypatch)
    whole = Network._layer(trt, "ATTENTION_INPUT", "multi_head", [], "a")
    trt.answers["INetworkDefinition", "num_layers"] = lambda self: 1
    trt.answers["INetworkDefinition", "get_layer"] = lambda self, index: whole
    found = build(request(tmp_path), nothing).attentions
    assert found is not None
    assert found.decomposed == ("multi_head",)


def test_without_log_and_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library(monkeypatch, log="")
    assert build(request(tmp_path), nothing).attentions is None


def test_no_builder_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = library(monkeypatch)

    def refuse(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.answers["Builder", "__init__"] = refuse
    with pytest.raises(ProviderUnavailable, match="no CUDA driver or GPU"):
        build(request(tmp_path), nothing)


def complaint(trt: Stub, operator: str, text: str) -> None:
    """The parser refuses."""
    error = trt.ParserError()
    trt.answers["OnnxParser", "parse_from_file"] = lambda self, path: False
    trt.answers["OnnxParser", "num_errors"] = lambda self: 1
    trt.answers["OnnxParser", "get_error"] = lambda self, index: error
    for member, value in (("desc", text), ("node_name", "node_7"), ("node_operator", operator)):
        trt.answers["ParserError", member] = lambda self, value=value: value


def test_a_node_that_is_not_taken_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complaint(library(monkeypatch), "Sparkle", "Plugin not found\n are the name and version right?")
    with pytest.raises(UnsupportedOperator, match=r"m\.onnx: TensorRT cannot take node node_7 \(Sparkle\)") as caught:
        build(request(tmp_path), nothing)
    assert caught.value.cause == "Plugin not found are the name and version right?"


def test_a_file_that_is_no_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    complaint(library(monkeypatch), "", "Failed to parse the ONNX model")
    with pytest.raises(EngineUnreadable, match="Failed to parse"):
        build(request(tmp_path), nothing)


def failing(trt: Stub, message: str) -> None:
    loggers: list[Any] = []
    trt.answers["Builder", "__init__"] = lambda self, logger: loggers.append(logger)

    def fail(self: Any, *_: Any) -> None:
        loggers[0].log(trt.ILogger.Severity.WARNING, "a warning")
        loggers[0].log(trt.ILogger.Severity.ERROR, message)

    trt.answers["Builder", "build_serialized_network"] = fail


def test_a_failed_build_says_the_last_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(library(monkeypatch), "no optimization profile has been defined")
    with pytest.raises(EngineError, match="no optimization profile has been defined"):
        build(request(tmp_path), nothing)
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(library(monkeypatch), "Error Code 2: OutOfMemory (Requested size was 8 bytes)")
    with pytest.raises(MemoryError, match="OutOfMemory"):
        build(request(tmp_path), nothing)


def test_the_stand_in_is_strict() -> None:
    trt = Stub("11.4.0")
    with pytest.raises(AttributeError):
        trt.BuilderFlag.FP16  # noqa: B018
    with pytest.raises(TypeError):
        trt.IBuilderConfig().set_flag(0)
    with pytest.raises(TypeError):
        trt.IOptimizationProfile().set_shape("x", (1,), (1,))
    with pytest.raises(AttributeError):
        trt.IBuilderConfig().max_workspace_size = 1
    assert hasattr(Stub("10.16.1").BuilderFlag, "FP16")
