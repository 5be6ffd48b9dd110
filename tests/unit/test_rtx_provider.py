"""TensorRT for RTX through ONNX Runtime's plugin, without a GPU: registering and options on a strict fake."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facesdk.backends import rtx_provider
from facesdk.backends.onnxruntime import OnnxRuntime
from facesdk.backends.rtx_provider import PROVIDER, RtxProvider, profile_options
from facesdk.cuda.memory import DeviceArray
from facesdk.errors import MissingDependency, ProviderUnavailable
from facesdk.nvidia import driver
from facesdk.plans.gpu import Gpu
from facesdk.plans.library import PLUGIN_MODULE
from tests.cuda_fake import FakeCuda
from tests.ort_fake import FakeOrt

PROFILE = {"p": ((1, 3), (2, 3), (8, 3)), "c": ((1, 3), (2, 3), (8, 3))}


@pytest.fixture
def step(save_graph):
    """next_p = p * t + c."""
    nodes = [("Mul", ["p", "t"], ["pt"]), ("Add", ["pt", "c"], ["next_p"])]
    return save_graph(nodes, {"p": ["n", 3], "t": [], "c": ["n", 3]}, {"next_p": ["n", 3]}, name="step")


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's package, whose library lies nowhere."""
    module = types.ModuleType(PLUGIN_MODULE)
    module.get_ep_name = lambda: PROVIDER
    module.get_library_path = lambda: "libonnxruntime_providers_nv_tensorrt_rtx.so"
    monkeypatch.setitem(sys.modules, PLUGIN_MODULE, module)


def test_a_scan_and_a_call_run_as_on_the_processor(step, plugin, monkeypatch):
    fake = FakeOrt().install(monkeypatch)
    backend, plain = RtxProvider(step, PROFILE, 3), OnnxRuntime(step, "cpu", None)
    rng = np.random.default_rng(5)
    p, c, t = (rng.random(shape, np.float32) for shape in ((2, 3), (2, 3), (4,)))
    made = backend.scan({"p": p}, {"t": t}, {"c": c}, lambda step, steps: None)
    for value in t:
        arrays = {"p": p, "t": np.array(value), "c": c}
        (call,), p = backend.run(arrays).values(), plain.run(arrays)["next_p"]
        np.testing.assert_array_equal(call, p)
    np.testing.assert_array_equal(made["p"], p)
    assert backend.device == "tensorrt-rtx"
    assert PROVIDER in backend.description
    assert backend._session.get_session_options().intra_op_num_threads == 3
    assert len(fake.opened) == 1


def test_arrays_on_a_gpu_stay_there(step, plugin, monkeypatch):
    cuda = FakeCuda().install(monkeypatch)
    FakeOrt(cuda=cuda).install(monkeypatch)
    arrays = {"p": np.ones((2, 3), np.float32), "t": np.array(2, np.float32), "c": np.ones((2, 3), np.float32)}
    made = RtxProvider(step, PROFILE, None).run({**arrays, "p": DeviceArray.of(arrays["p"])})["next_p"]
    assert isinstance(made, DeviceArray)
    np.testing.assert_array_equal(made.numpy(), np.full((2, 3), 3, np.float32))
    del made
    cuda.check()


def test_the_options_name_profile_graph_and_cache(step, plugin, monkeypatch, tmp_path):
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path))
    fake = FakeOrt().install(monkeypatch)
    RtxProvider(step, PROFILE, None)
    (options,) = fake.opened
    (cache,) = (tmp_path / "rtx-cache").iterdir()
    assert cache.name.startswith("step-")
    assert options == {
        "nv_profile_min_shapes": "p:1x3,c:1x3",
        "nv_profile_opt_shapes": "p:2x3,c:2x3",
        "nv_profile_max_shapes": "p:8x3,c:8x3",
        "nv_runtime_cache_path": str(cache),
        "enable_cuda_graph": "1",
    }


def test_without_a_profile_or_a_graph_nothing_is_said_of_them(step, plugin, monkeypatch):
    fake = FakeOrt().install(monkeypatch)
    RtxProvider(step, {}, None, graph=False)
    assert list(fake.opened[0]) == ["nv_runtime_cache_path"]
    assert profile_options({}) == {}


def test_files_and_their_changes_have_caches_of_their_own(step, plugin, monkeypatch, tmp_path):
    fake = FakeOrt().install(monkeypatch)
    other = tmp_path / "elsewhere" / step.name
    other.parent.mkdir()
    other.write_bytes(step.read_bytes())
    for path in (step, step, other):
        RtxProvider(path, PROFILE, None)
    os.utime(step, ns=(0, 0))
    RtxProvider(step, PROFILE, None)
    first, again, elsewhere, changed = (options["nv_runtime_cache_path"] for options in fake.opened)
    assert first == again
    assert len({first, elsewhere, changed}) == 3


def test_a_cache_that_cannot_be_kept_is_done_without(step, plugin, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "file"))
    fake = FakeOrt().install(monkeypatch)
    RtxProvider(step, PROFILE, None)
    assert "nv_runtime_cache_path" not in fake.opened[0]
    assert "kernels are compiled again at every start" in caplog.text


def test_the_library_is_registered_once_by_whatever_thread(step, plugin, monkeypatch):
    fake, calls = FakeOrt().install(monkeypatch), []
    register = fake._register

    def slowly(name, library):
        calls.append(name)
        time.sleep(0.02)
        register(name, library)

    monkeypatch.setattr(rtx_provider.ort, "register_execution_provider_library", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: RtxProvider(step, PROFILE, None), range(16)))
    assert calls == [PROVIDER]


def test_a_missing_driver_is_named_with_what_to_do(step, plugin, monkeypatch):
    message = "libcuda.so.1: cannot open shared object file: No such file or directory"
    FakeOrt(register_error=message).install(monkeypatch)
    with pytest.raises(ProviderUnavailable, match="device 'tensorrt-rtx' cannot be used here") as caught:
        RtxProvider(step, PROFILE, None)
    assert caught.value.cause == message
    assert caught.value.remedy.startswith("install the driver of the GPU")


def test_a_damaged_package_is_to_be_installed_again(step, plugin, monkeypatch):
    FakeOrt(register_error="libtensorrt_rtx.so.1: file too short").install(monkeypatch)
    with pytest.raises(ProviderUnavailable) as caught:
        RtxProvider(step, PROFILE, None)
    assert caught.value.remedy.startswith("pip install --force-reinstall onnxruntime-ep-nv-tensorrt-rtx-cu13")


def test_a_gpu_that_the_provider_does_not_take_is_named(step, plugin, monkeypatch):
    FakeOrt(devices=0).install(monkeypatch)
    monkeypatch.setattr(rtx_provider, "first_gpu", lambda: Gpu("NVIDIA H200", "9.0", 143771.0))
    for _ in range(2):  # registered already, the second time
        with pytest.raises(ProviderUnavailable, match=r"8.6, 8.9 and from 12.0 on; here is NVIDIA H200 \(9.0\)"):
            RtxProvider(step, PROFILE, None)


def test_a_fallback_to_the_processor_is_an_error(step, plugin, monkeypatch):
    FakeOrt(falls_back=True).install(monkeypatch)
    with pytest.raises(ProviderUnavailable, match="fell back to CPUExecutionProvider"):
        RtxProvider(step, PROFILE, None)


def test_a_refused_graph_is_logged_and_done_without(step, plugin, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "facesdk")
    fake = FakeOrt(graph_refused="no stream capture here").install(monkeypatch)
    RtxProvider(step, PROFILE, None)
    assert [options.get("enable_cuda_graph") for options in fake.opened] == ["1", None]
    assert "plain launches: TensorRT for RTX allows no CUDA graph: no stream capture here" in caplog.text


def test_an_onnxruntime_without_plugins_is_to_be_upgraded(step, plugin, monkeypatch):
    FakeOrt().install(monkeypatch)
    monkeypatch.delattr(rtx_provider.ort, "get_ep_devices")
    with pytest.raises(ProviderUnavailable, match="takes no plugins") as caught:
        RtxProvider(step, PROFILE, None)
    assert "onnxruntime>=1.24" in caught.value.remedy


@pytest.mark.skipif(importlib.util.find_spec(PLUGIN_MODULE) is not None, reason="the plugin is installed")
def test_without_the_package_its_name_is_said(step):
    with pytest.raises(MissingDependency, match=PLUGIN_MODULE) as caught:
        RtxProvider(step, PROFILE, None)
    assert caught.value.remedy == "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"


@pytest.mark.skipif(importlib.util.find_spec(PLUGIN_MODULE) is None, reason=f"{PLUGIN_MODULE} is not installed")
@pytest.mark.skipif(driver() is not None, reason="there is a driver")
def test_the_real_plugin_says_at_once_that_there_is_no_driver(step):
    start = time.perf_counter()
    with pytest.raises(ProviderUnavailable, match=r"libcuda|libnvidia-ml|nvcuda") as caught:
        RtxProvider(step, PROFILE, None)
    assert time.perf_counter() - start < 1
    assert "install the driver" in caught.value.remedy
