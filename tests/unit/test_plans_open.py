"""Plans behind `Engine.open`: found by name, compared with what they were built of, refused, and chosen by `auto`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Device, Engine
from facesdk.errors import (
    BundleError,
    EngineStale,
    EngineUnreadable,
    FaceSDKError,
    MissingDependency,
    ModelNotFound,
    OutOfMemory,
    ProviderUnavailable,
    UsageError,
)  # fmt: skip
from facesdk.plans import digests, gpu
from facesdk.plans.names import plan_name, plan_names
from tests import trt_execution
from tests.bundles import DATA
from tests.plan_bundles import H200, RTX_4090, make_bundle, put_plan, save_step

pytest.importorskip("onnx")
FIRST_GPU = gpu.first_gpu
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[trt_execution.Execution]:
    """TensorRT, cuda-python and an H200, all stand-ins."""
    half = trt_execution.install(monkeypatch)
    yield half
    half.check()


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[trt_execution.Execution]:
    """The same with TensorRT for RTX and an RTX 4090, without ONNX Runtime's plugin."""
    half = trt_execution.install(monkeypatch, trt_execution.RTX)
    monkeypatch.setattr(gpu, "first_gpu", lambda *advice: RTX_4090)
    hide(monkeypatch, PLUGIN)
    yield half
    half.check()


@pytest.fixture
def bundle(save_graph: Any, tmp_path: Path) -> Bundle:
    return make_bundle(save_graph, tmp_path / "demo")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These modules are not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in names else found(name, *more))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


def rows(count: int = 2) -> Any:
    return np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)


def refused(kind: type[FaceSDKError], bundle: Bundle, device: Device = "tensorrt", **options: Any) -> FaceSDKError:
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        bundle.open("step", device, **options)
    assert time.monotonic() - started < 1
    return caught.value


# -- found --------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert plan_name("step", "tensorrt-rtx", "fp16", capability="8.9") == "step.tensorrt-rtx.fp16.plan"
    assert plan_name("step", "tensorrt", "fp32", capability="9.0") == "step.tensorrt.sm90.fp32.plan"
    assert plan_name("step", "tensorrt", "fp32", capability="9.0", hardware="capability") == (
        "step.tensorrt.sm90.fp32.plan"
    )
    assert plan_names("step", "tensorrt", "fp16", "12.0") == (
        "step.tensorrt.sm120.fp16.plan", "step.tensorrt.ampere.fp16.plan",
    )  # fmt: skip
    assert plan_names("step", "tensorrt-rtx", "fp16", "12.0") == ("step.tensorrt-rtx.fp16.plan",)


def test_the_plan_beside_the_file_is_what_runs(half: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put_plan(bundle.folder / "step.onnx")
    monkeypatch.setattr(digests, "sha256", None)  # what a bundle pins is not read
    with bundle.open("step", "tensorrt") as engine, bundle.open("step", "cpu") as cpu:
        assert (engine.device, engine.reason) == ("tensorrt", "asked for")
        assert engine.description == f"TensorRT {trt_execution.VERSIONS[-1]} fp32, NVIDIA H200"
        assert list(map(str, engine.inputs)) == ["x float32[n, 4]"]
        x = rows()
        for name, values in cpu(x=x).items():
            np.testing.assert_array_equal(engine(x=x)[name], values)
        assert engine.card.engine == "step"


def test_fp16_takes_the_plan_of_the_fp16_file(half: Any, bundle: Bundle) -> None:
    put_plan(bundle.folder / "step.onnx")
    error = refused(ModelNotFound, bundle, precision="fp16")
    assert error.fact == "step has no plan for tensorrt in fp16"
    put_plan(bundle.folder / "step.fp16.onnx")
    x = rows()
    with bundle.open("step", "tensorrt", precision="fp16") as engine:
        assert engine.path.name == "step.fp16.onnx"
        with bundle.open("step", "cpu", precision="fp16") as cpu:
            np.testing.assert_array_equal(engine(x=x)["vector"], cpu(x=x)["vector"])
        with bundle.open("step", "tensorrt") as full:
            assert 0 < np.abs(full(x=x)["vector"] - engine(x=x)["vector"]).max() < 1e-2


def test_a_plan_in_another_folder(half: Any, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    elsewhere = Bundle(bundle.folder, folder)
    assert refused(ModelNotFound, elsewhere).remedy == (
        f"facesdk build {bundle.folder} --engine step --device tensorrt --precision fp32 -o {folder}"
    )
    put_plan(bundle.folder / "step.onnx", folder=folder)
    elsewhere.open("step", "tensorrt").close()
    refused(ModelNotFound, bundle)


def test_a_plan_for_this_gpu_goes_before_one_for_ampere(half: Any, bundle: Bundle) -> None:
    graph = bundle.folder / "step.onnx"
    put_plan(graph, hardware="ampere", capabilities=("8.6",))
    bundle.open("step", "tensorrt").close()
    put_plan(graph).write_bytes(b"damaged")
    refused(EngineUnreadable, bundle)


def test_the_form_for_tensorrt_is_what_both_libraries_read(rtx: Any, bundle: Bundle, save_graph: Any) -> None:
    form = save_step(save_graph, "step.tensorrt").rename(bundle.folder / "step.tensorrt.onnx")
    bundle._engines["step"]["tensorrt"] = form.name  # type: ignore[index]
    put_plan(form, "tensorrt-rtx")
    with bundle.open("step", "tensorrt-rtx") as engine:
        assert engine.device == "tensorrt-rtx"


# -- not there, or not right --------------------------------------------------------------------------------------


def test_without_a_plan_the_command_that_builds_it(half: Any, bundle: Bundle) -> None:
    error = refused(ModelNotFound, bundle, precision="fp16")
    assert error.cause == f"{bundle.folder / 'step.tensorrt.sm90.fp16.plan'} does not exist"
    assert error.remedy == f"facesdk build {bundle.folder} --engine step --device tensorrt --precision fp16"


def test_a_file_outside_of_bundles(half: Any, save_graph: Any) -> None:
    graph = save_step(save_graph)
    with pytest.raises(ModelNotFound, match="plans are built of bundles") as caught:
        Engine.open(graph, "tensorrt")
    assert "facesdk build BUNDLE --engine step --device tensorrt" in caught.value.remedy
    put_plan(graph)
    Engine.open(graph, "tensorrt").close()


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"version": "10.0.1"}, "tensorrt 10.0.1 built it, 11.4.0 is here"),
        ({"capabilities": ("8.6",)}, "it runs on compute capability 8.6, this GPU has 9.0"),
        ({"gpu": "NVIDIA H100"}, "it was built for NVIDIA H100 alone, this is NVIDIA H200"),
        ({"files": {"step.onnx": "00"}}, "step.onnx has changed"),
        ({"files": {"old.onnx": "00"}}, "it was built of old.onnx; the file for tensorrt is step.onnx now"),
        ({"files": {"step.onnx": None, "step.onnx.data": "00"}}, "step.onnx.data has changed"),
    ],
)
def test_a_stale_plan_is_named_with_the_command(half: Any, bundle: Bundle, facts: Any, said: str) -> None:
    if facts.get("files", {}).get("step.onnx", "") is None:
        facts["files"]["step.onnx"] = bundle.files["step.onnx"]
    put_plan(bundle.folder / "step.onnx", **facts)
    error = refused(EngineStale, bundle)
    assert error.cause == said
    assert error.remedy == f"facesdk build {bundle.folder} --engine step --device tensorrt --precision fp32"
    assert half.runs == []


def test_a_plan_for_every_model_of_a_capability(half: Any, bundle: Bundle) -> None:
    put_plan(bundle.folder / "step.onnx", hardware="capability", gpu="NVIDIA H100")
    bundle.open("step", "tensorrt").close()


def test_a_truncated_plan(half: Any, bundle: Bundle) -> None:
    plan = put_plan(bundle.folder / "step.onnx")
    plan.write_bytes(plan.read_bytes()[:-9])
    assert refused(EngineUnreadable, bundle).remedy.endswith("--precision fp32 --force")


def test_a_file_that_no_bundle_pins_is_read_once(half: Any, save_graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, read = save_step(save_graph), []
    sha256 = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(path) or sha256(path))
    put_plan(graph)
    for _ in range(2):
        Engine.open(graph, "tensorrt").close()
    assert read == [graph]
    graph.write_bytes(graph.read_bytes() + b"\x12\x01x")  # producer_name
    with pytest.raises(EngineStale, match=r"step\.onnx has changed"):
        Engine.open(graph, "tensorrt")
    assert read == [graph, graph]


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt-rtx", "cuda", "cpu", "auto"])
def test_bf16_is_not_for_gpus(half: Any, bundle: Bundle, device: Device) -> None:
    assert 'device="openvino"' in refused(UsageError, bundle, device, precision="bf16").remedy


def test_an_engine_without_fp16(half: Any, save_graph: Any) -> None:
    with pytest.raises(UsageError, match="has no fp16 form"):
        Engine.open(save_step(save_graph), "tensorrt", precision="fp16")


# -- what this machine lacks --------------------------------------------------------------------------------------


def test_without_the_library(half: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put_plan(bundle.folder / "step.onnx")
    hide(monkeypatch, "tensorrt")
    assert refused(MissingDependency, bundle).remedy == "pip install tensorrt-cu13"


def test_without_cuda_python(half: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    put_plan(bundle.folder / "step.onnx")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert refused(MissingDependency, bundle).remedy == "pip install cuda-python"


def test_all_that_is_missing_is_said_at_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(gpu, "driver", lambda: None)
    error = refused(ProviderUnavailable, bundle)
    assert error.fact == "device 'tensorrt' cannot be used here"
    for words in ("the Python package tensorrt;", "needs cuda-python;", "no NVIDIA driver is installed"):
        assert words in f"{error.cause};"
    for command in ("pip install tensorrt-cu13", "pip install cuda-python", "ubuntu-drivers install"):
        assert command in error.remedy


def test_a_driver_that_cuda_python_cannot_use(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trt_execution.install(monkeypatch, no_driver=True)
    error = refused(ProviderUnavailable, bundle)
    assert "cudaErrorInsufficientDriver" in error.cause


# -- TensorRT for RTX ---------------------------------------------------------------------------------------------


class Plugin:
    """What stands for RtxProvider."""

    device, description, inputs, outputs = "tensorrt-rtx", "plugin", (), ()

    def __init__(self, path: Path, profile: Any, threads: int | None) -> None:
        self.asked = path.name, profile, threads

    def close(self) -> None:
        pass


@pytest.fixture
def plugin(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's plugin is installed."""
    for name, values in ((PLUGIN, {}), ("facesdk.backends.rtx_provider", {"RtxProvider": Plugin})):
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == PLUGIN or found(name, *more))


def test_an_rtx_plan(rtx: Any, bundle: Bundle) -> None:
    put_plan(bundle.folder / "step.onnx", "tensorrt-rtx")
    with bundle.open("step", "tensorrt-rtx") as engine:
        assert engine.description == f"TensorRT-RTX {trt_execution.RTX} fp32, NVIDIA GeForce RTX 4090"
        assert engine(x=rows())["vector"].shape == (2, 6)


def test_without_a_plan_both_ways_are_named(rtx: Any, bundle: Bundle) -> None:
    assert refused(ModelNotFound, bundle, "tensorrt-rtx").remedy == (
        f"facesdk build {bundle.folder} --engine step --device tensorrt-rtx --precision fp32 --gpus 8.9; "
        "or, to run without a plan: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
    )


def test_without_plan_or_library_both_ways_are_named(rtx: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt_rtx", PLUGIN)
    assert refused(MissingDependency, bundle, "tensorrt-rtx").remedy == (
        "pip install tensorrt-rtx; or, to run without a plan: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
    )


def test_without_a_plan_the_plugin(plugin: None, bundle: Bundle) -> None:
    with (bundle.folder / "bundle.toml").open("a") as file:
        file.write("\n[profiles.step]\nx = [[1, 4], [5, 4], [9, 4]]\n")
    with bundle.open("step", "tensorrt-rtx", precision="fp16", threads=3) as engine:
        assert engine._backend.asked == ("step.fp16.onnx", {"x": ((1, 4), (5, 4), (9, 4))}, 3)  # type: ignore[union-attr]


def test_with_a_plan_the_plugin_is_not_asked(plugin: None, bundle: Bundle) -> None:
    plan = put_plan(bundle.folder / "step.onnx", "tensorrt-rtx")
    with bundle.open("step", "tensorrt-rtx") as engine:
        assert "TensorRT-RTX" in engine.description
    plan.write_bytes(b"damaged")
    refused(EngineUnreadable, bundle, "tensorrt-rtx")


def test_profiles_that_are_none(plugin: None, bundle: Bundle) -> None:
    with (bundle.folder / "bundle.toml").open("a") as file:
        file.write("\n[profiles.step]\nx = [[1, 4]]\n")
    refused(BundleError, bundle, "tensorrt-rtx")


def test_without_sizes_the_plugin_allows_all(plugin: None, save_graph: Any) -> None:
    with Engine.open(save_step(save_graph, card=Card()), "tensorrt-rtx") as engine:
        assert engine._backend.asked == ("step.onnx", {}, None)  # type: ignore[union-attr]


def test_with_the_plugin_the_driver_is_all_that_is_missing(
    plugin: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "first_gpu", FIRST_GPU)
    monkeypatch.setattr(gpu, "driver", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert refused(ProviderUnavailable, bundle, "tensorrt-rtx").fact == "no NVIDIA driver is installed"


def test_gpus_that_rtx_does_not_run_on(plugin: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "first_gpu", lambda *advice: H200)
    error = refused(ProviderUnavailable, bundle, "tensorrt-rtx")
    assert error.fact == "tensorrt-rtx does not run on NVIDIA H200"
    assert "8.6, 8.9, 12.0" in error.cause
    assert "this GPU has 9.0" in error.cause


# -- auto ---------------------------------------------------------------------------------------------------------


def opened(bundle: Bundle, **options: Any) -> tuple[str, str]:
    with bundle.open("step", openvino=False, **options) as engine:
        return engine.device, engine.reason


def test_auto_takes_the_plan(half: Any, bundle: Bundle) -> None:
    put_plan(bundle.folder / "step.onnx")
    assert opened(bundle) == ("tensorrt", "auto: a plan for tensorrt is here")


def test_auto_takes_an_rtx_plan_where_there_is_no_tensorrt(rtx: Any, bundle: Bundle) -> None:
    put_plan(bundle.folder / "step.onnx", "tensorrt-rtx")
    device, reason = opened(bundle)
    assert device == "tensorrt-rtx"
    assert reason == (
        "auto: a plan for tensorrt-rtx is here; running on tensorrt needs the Python package tensorrt"
    )  # fmt: skip


def test_auto_without_a_plan_takes_cuda_and_says_what_lacks(
    half: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facesdk.backends import onnxruntime

    class Cuda(onnxruntime.OnnxRuntime):
        def __init__(self, path: Path, device: str, threads: int | None) -> None:
            super().__init__(path, "cpu", threads)
            self.device = device

    monkeypatch.setattr(onnxruntime, "OnnxRuntime", Cuda)
    assert opened(bundle) == (
        "cuda",
        "auto: CUDA is here; step has no plan for tensorrt in fp32; tensorrt-rtx does not run on NVIDIA H200"
        if importlib.util.find_spec("tensorrt_rtx")
        else "auto: CUDA is here; step has no plan for tensorrt in fp32; device 'tensorrt-rtx' cannot be used here",
    )
    assert "no plan for tensorrt in fp16" in opened(bundle, precision="fp16")[1]


def test_auto_goes_on_where_the_gpu_is_full(half: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from facesdk.backends import onnxruntime

    def full(path: Path, device: str, threads: int | None) -> Any:
        if device == "cuda":
            raise OutOfMemory("the GPU has no room for 12.0 MB")
        return here(path, device, threads)

    here = onnxruntime.OnnxRuntime
    monkeypatch.setattr(onnxruntime, "OnnxRuntime", full)
    device, reason = opened(bundle)
    assert device in ("cpu", "openvino")
    assert "the GPU has no room for 12.0 MB" in reason


def test_auto_does_not_take_the_plugin(plugin: None, bundle: Bundle) -> None:
    assert opened(bundle)[0] != "tensorrt-rtx"


def test_auto_warns_of_a_plan_that_it_does_not_use(half: Any, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    put_plan(bundle.folder / "step.onnx", version="10.0.1")
    device, reason = opened(bundle)
    assert device == "cpu"
    assert "step.tensorrt.sm90.fp32.plan was built for something else" in reason
    assert "tensorrt 10.0.1 built it" in caplog.text


def test_auto_without_a_driver_loads_no_library_of_gpus(bundle: Bundle) -> None:
    code = (
        "import sys, facesdk.nvidia as n; n.driver = lambda: None\n"
        "import facesdk.plans.gpu as g; g.driver = lambda: None\n"
        "from facesdk.engine import Engine\n"
        f"engine = Engine.open({str(bundle.folder / 'step.onnx')!r}, openvino=False)\n"
        "print(engine.device, '|', engine.reason)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('tensorrt', 'tensorrt_rtx', 'cuda')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "cpu | auto: OpenVINO is not for this engine; no NVIDIA driver is installed", "[]",
    ]  # fmt: skip


# -- on a machine without a GPU, for real -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "command"),
    [
        ("tensorrt", "pip install tensorrt-cu13"), ("tensorrt-rtx", "pip install tensorrt-rtx"),
        ("cuda", "onnxruntime-gpu"),
    ],
)  # fmt: skip
def test_devices_by_name_are_refused_within_a_second(bundle: Bundle, device: Device, command: str) -> None:
    if gpu.driver() is not None:
        pytest.skip("there is an NVIDIA driver")
    error = refused(ProviderUnavailable, bundle, device)
    assert "no NVIDIA driver is installed" in f"{error.fact} {error.cause}"
    library = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "cuda": ""}[device]
    assert command in error.remedy or (library and importlib.util.find_spec(library))
    assert "driver" in error.remedy


@pytest.mark.parametrize("device", ["tensorrt", "tensorrt-rtx", "cuda"])
def test_the_command_line_refuses_them_too(models_home: Path, bundle_478: Bundle, tmp_path: Path, device: str) -> None:
    if gpu.driver() is not None:
        pytest.skip("there is an NVIDIA driver")
    words = ["annotate", str(DATA / "astronaut.png"), "-o", str(tmp_path / "out"), "--device", device, "--json"]
    environment = {**os.environ, "FACESDK_HOME": str(models_home), "FACESDK_OFFLINE": "1"}
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "facesdk.cli", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - started < 5
    assert ran.returncode == 4
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "provider-unavailable"
    assert "driver" in error["remedy"]
