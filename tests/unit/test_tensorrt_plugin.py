"""Our attention kernel in TensorRT plans: both plugins' arithmetic, what TensorRT asks of them, and what is built."""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from facesdk.backends.tensorrt import TensorRt
from facesdk.engine import Engine
from facesdk.errors import EngineError, EngineStale, MissingDependency, ProviderUnavailable, UsageError
from facesdk.files import sha256
from facesdk.kernels import library
from facesdk.kernels.operands import Operands
from facesdk.kernels.reference import attend, error_bound
from facesdk.plans import plugin
from facesdk.plans.key import Here, Key, check, read_key, write_key
from facesdk_engines.tensorrt import images, plans
from facesdk_engines.tensorrt.aot import register
from facesdk_engines.tensorrt.build import Built, Request, build
from facesdk_engines.tensorrt.images import Image
from facesdk_engines.tensorrt.options import BuildOptions
from tests import trt_execution
from tests.plan_bundles import CARD, H200, PROFILE, make_bundle, save_step
from tests.trt_stub import Stub

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
HEADERS = next(
    (
        place
        for place in (Path(os.environ.get("TENSORRT_ROOT", "/usr")) / "include", Path("/usr/include/x86_64-linux-gnu"))
        if (place / "NvInferRuntime.h").is_file()
    ),
    None,
)
# data types of nvinfer1::DataType
FLOAT, HALF, BF16 = 0, 1, 7
ENCODED = {"fp16": 0, "bf16": 1}
IMAGES = [Image("fp16", dim, tile) for dim in images.HEAD_DIMS for tile in images.tiles(dim)]
IMAGES += [Image("bf16", 40, 128), Image("bf16", 160, 64)]

F64 = NDArray[np.float64]


# -- arithmetic -------------------------------------------------------------------------------------------


def compiled(target: Path, *words: str) -> ctypes.CDLL:
    """C++ sources and flags as a library, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-Werror"]
    done = subprocess.run(["g++", *flags, *words, "-o", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels that both plugins launch, on emulated thread blocks."""
    found = compiled(tmp_path_factory.mktemp("host") / "libhost.so", str(KERNELS / "plugin" / "host.cpp"))
    found.facesdk_host_failure.restype = ctypes.c_char_p
    return found


class Packed(ctypes.Structure):
    """kernels/plugin/packed.h"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_int32) for name in ("rows", "queries", "keys", "heads", "dim", "dtype")),
        ("scale", ctypes.c_float),
    )


class Problem:
    """Queries of `rows` x `shared` rows, of which `shared` after each other have the same keys; packed, 16 bits."""

    def __init__(self, dtype: str, heads: int, dim: int, rows: int, shared: int, queries: int, keys: int) -> None:
        self.dtype, self.heads, self.dim = dtype, heads, dim
        values = np.random.default_rng([heads, dim, rows, shared, queries, keys])
        self.query_shape = (rows * shared, queries, heads * dim)
        self.key_shape = (rows, keys, heads * dim)
        shapes = (self.query_shape, self.key_shape, self.key_shape)
        self.arrays = [aligned(encoded(values.normal(size=shape), dtype)) for shape in shapes]
        self.out = aligned(np.full(self.query_shape, 0xFFFF, np.uint16))  # NaN, in either dtype

    def addresses(self) -> list[int]:
        return [array.ctypes.data for array in self.arrays]

    def check(self, scale: float | None = None) -> None:
        """The output is what attention in float64 gives, as near as rounding allows."""
        query, key, value = (decoded(array, self.dtype) for array in self.arrays)
        rows = self.key_shape[0]
        split = [np.ascontiguousarray(each).reshape(rows, -1, self.heads, self.dim) for each in (query, key, value)]
        operands = Operands(*split, None, None, None, None, None, None, None)
        scale = self.dim**-0.5 if scale is None else scale
        exact = attend(operands, scale).reshape(self.query_shape)
        bound = error_bound(operands, scale, self.dtype).reshape(self.query_shape)
        got = decoded(self.out, self.dtype)
        assert np.isfinite(got).all()
        assert (np.abs(got - exact) <= bound).all()


def encoded(values: F64, dtype: str) -> NDArray[np.uint16]:
    if dtype == "fp16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decoded(stored: NDArray[np.uint16], dtype: str) -> F64:
    if dtype == "fp16":
        return stored.view(np.float16).astype(np.float64)
    return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def aligned(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A copy at a multiple of 16 bytes."""
    raw = np.empty(values.nbytes + 16, np.uint8)
    start = -raw.ctypes.data % 16
    copy = raw[start : start + values.nbytes].view(np.uint16).reshape(values.shape)
    copy[...] = values
    return copy


# -- ahead of time: a strict `tensorrt.plugin` that counts with numbers ---------------------------------------


class Size(int):
    """A ShapeExpr that is a constant."""

    def constant_value(self) -> int:
        return int(self)

    def __mul__(self, other: int) -> Size:
        return Size(int(self) * other)

    def __floordiv__(self, other: int) -> Size:
        return Size(int(self) // other)


class TensorDesc:
    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape_expr = tuple(map(Size, shape))
        self.dtype = SimpleNamespace(name=dtype)

    def like(self) -> TensorDesc:
        return TensorDesc(self.shape_expr, self.dtype.name)


class KernelLaunchParams:
    __slots__ = ("block_x", "block_y", "block_z", "grid_x", "grid_y", "grid_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0 if name == "shared_mem" else 1)


class SymInt32(int):
    """A kernel's parameter."""


class SymIntExprs(list):  # type: ignore[type-arg]
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: list[int]) -> None:
        self.io_types, self.layouts, self.tactics = io_types, layouts, tactics


class Plugins(ModuleType):
    """The decorators, and what they were given."""

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.TensorDesc, self.AutoTuneCombination = TensorDesc, AutoTuneCombination
        self.KernelLaunchParams, self.SymIntExprs, self.SymInt32 = KernelLaunchParams, SymIntExprs, SymInt32
        self.op = SimpleNamespace()
        self.given: dict[str, Callable[..., Any]] = {}
        inputs = dict.fromkeys(("query", "key", "value"), TensorDesc) | {"heads": int}
        outputs = {"outputs": tuple[TensorDesc]}
        image = tuple[str, str, KernelLaunchParams, SymIntExprs]
        self.register = self._decorator("register", inputs, TensorDesc)
        self.autotune = self._decorator("autotune", inputs | outputs, list[AutoTuneCombination])
        self.aot_impl = self._decorator("aot_impl", inputs | outputs | {"tactic": int}, image)

    def _decorator(self, what: str, parameters: dict[str, Any], result: Any) -> Callable[..., Any]:
        def decorator(name: str) -> Callable[..., Any]:
            def take(function: Callable[..., Any]) -> Callable[..., Any]:
                assert name == "facesdk::FusedAttention"
                signature = inspect.signature(function)
                assert {key: each.annotation for key, each in signature.parameters.items()} == parameters
                assert list(signature.parameters) == list(parameters)
                assert signature.return_annotation == result
                assert what not in self.given
                self.given[what] = function
                if what == "register":
                    self.op.facesdk = SimpleNamespace(FusedAttention=function)
                return function

            return take

        return decorator

    @staticmethod
    def cdiv(first: int, second: int) -> int:
        return -(-first // second)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """`tensorrt.plugin` of 10.9, with our kernel registered twice."""
    found = Plugins()
    trt = Stub("10.9.0")
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", found)
    for _ in range(2):
        register(trt)
    assert found.given.keys() == {"register", "autotune", "aot_impl"}
    return found


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kernel library, its images and its plugin; none can be loaded."""
    folder = tmp_path / "kernels"
    (folder / "images").mkdir(parents=True)
    (folder / library._FILE).write_bytes(b"kernels")
    (folder / plugin._FILE).write_bytes(b"plugin")
    for dtype in library.DTYPES:
        for dim in images.HEAD_DIMS:
            for tile in images.tiles(dim):
                image = Image(dtype, dim, tile)
                (folder / "images" / f"{image.entry}.ptx").write_text(f"// {image.entry}")
    monkeypatch.setenv(library.VARIABLE, str(folder))
    return folder


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.entry)
def test_image_launched_as_tensorrt_is_told(image: Image, host: ctypes.CDLL, plugins: Plugins, kernels: Path) -> None:
    heads, rows, shared = 2, 2, 3
    problem = Problem(image.dtype, heads, image.dim, rows, shared, queries=29, keys=77)
    dtype = {"fp16": "HALF", "bf16": "BF16"}[image.dtype]
    query, key = TensorDesc(problem.query_shape, dtype), TensorDesc(problem.key_shape, dtype)
    out = plugins.given["register"](query, key, key, heads)
    assert (out.shape_expr, out.dtype.name) == (problem.query_shape, dtype)
    (combination,) = plugins.given["autotune"](query, key, key, heads, (out,))
    assert combination.io_types == ", ".join([image.dtype.upper()] * 4)
    assert image.queries in combination.tactics
    name, code, launch, integers = plugins.given["aot_impl"](query, key, key, heads, (out,), image.queries)
    assert (name, code) == (image.entry, f"// {image.entry}")
    assert (launch.block_x, launch.block_y, launch.block_z) == (128, 1, 1)
    assert all(type(value) is SymInt32 for value in integers)
    assert launch.shared_mem <= 48 * 1024
    grid = (ctypes.c_int32 * 4)(launch.grid_x, launch.grid_y, launch.grid_z, launch.shared_mem)
    packed = Packed(*problem.addresses(), problem.out.ctypes.data, 0, *integers, image.dim, ENCODED[image.dtype])
    assert host.facesdk_host_image(grid, ctypes.byref(packed), image.queries) == 0, host.facesdk_host_failure()
    problem.check()


def test_images_before_tensorrt_10_9() -> None:
    with pytest.raises(EngineError, match=r"TensorRT 10\.8\.0 has no ahead-of-time plugins"):
        register(Stub("10.8.0"))


def test_a_missing_image(kernels: Path) -> None:
    (kernels / "images" / "facesdk_attention_bf16_40_128.ptx").unlink()
    with pytest.raises(MissingDependency, match="images are not built") as found:
        images.folder()
    assert "facesdk_attention_bf16_40_128.ptx" in str(found.value)


def test_the_real_decorators_take_it(tmp_path: Path) -> None:
    """NVIDIA's own checks, where its bindings (pip install --no-deps tensorrt-cu13-bindings) are installed."""
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["FusedAttention", "1", "facesdk", "heads", "HALF", "AOT"]


# libraries of the names that the bindings want, which make nothing
REAL = """
import ctypes, importlib.metadata, importlib.util, pathlib, subprocess, sys
if importlib.util.find_spec("tensorrt_bindings") is None:
    print("tensorrt_bindings is not installed")
    raise SystemExit(77)
major = importlib.metadata.version("tensorrt-cu13-bindings").split(".")[0]
functions = {
    "libnvinfer": "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "getBuilderPluginRegistry getPluginRegistry",
    "libnvinfer_plugin": "initLibNvInferPlugins",
    "libnvonnxparser": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
}
for name, symbols in functions.items():
    target = pathlib.Path(sys.argv[1]) / f"{name}.so.{major}"
    source = "".join(f"void *{symbol}(void) {{ return 0; }}\\n" for symbol in symbols.split())
    command = ["gcc", "-shared", "-fPIC", "-xc", "-", "-o", str(target), f"-Wl,-soname,{target.name}"]
    subprocess.run(command, input=source, text=True, check=True)
    ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt

class Registry:
    creators = {}
    def register_creator(self, creator, namespace):
        self.creators[creator.name, creator.plugin_version, namespace] = creator
    def get_creator(self, *name):
        return self.creators[name]

registry = Registry()
trt.get_plugin_registry = lambda: registry
sys.modules["tensorrt"] = trt
import tensorrt_bindings.plugin
sys.modules["tensorrt.plugin"] = tensorrt_bindings.plugin
trt.__name__ = "tensorrt"
from facesdk_engines.tensorrt.aot import register
register(trt)
register(trt)
((name, creator),) = registry.creators.items()
fields = [field.name for field in creator.field_names]
import numpy
heads = trt.PluginField("heads", numpy.array([8]), trt.PluginFieldType.INT64)
made = creator.create_plugin(
    "FusedAttention", "facesdk", trt.PluginFieldCollection([heads]), trt.TensorRTPhase.BUILD,
    trt.QuickPluginCreationRequest.STRICT_AOT,
)
(dtype,) = made.get_output_data_types([trt.DataType.HALF] * 3, [3, 3, 3])
print(*name, *fields, dtype.name, "AOT" if isinstance(made, trt.IPluginV3QuickAOTBuild) else "JIT")
"""


# -- the C++ plugin -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driven(host: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The plugin with tests/plugin_driver.cpp, on the kernels of `host`."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    if HEADERS is None or not cuda.is_dir():
        pytest.skip("TensorRT's headers (TENSORRT_ROOT) or CUDA's (CUDA_HOME) are not installed")
    sources = [str(KERNELS / "plugin" / "tensorrt.cpp"), str(ROOT / "tests" / "plugin_driver.cpp"), host._name]
    words = ["-isystem", str(HEADERS), "-isystem", str(cuda), *sources]
    found = compiled(tmp_path_factory.mktemp("plugin") / "driver.so", *words)
    found.driver_names.restype = ctypes.c_char_p
    return found


def sizes(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def run_plugin(driven: ctypes.CDLL, problem: Problem, scale: float) -> int:
    inputs = (ctypes.c_void_p * 3)(*problem.addresses())
    return int(
        driven.driver_run(
            problem.heads, ctypes.c_float(scale), {"fp16": HALF, "bf16": BF16}[problem.dtype],
            sizes(*problem.query_shape), sizes(*problem.key_shape), inputs, ctypes.c_void_p(problem.out.ctypes.data),
        )
    )  # fmt: skip


def test_plugin_is_what_the_nodes_name(driven: ctypes.CDLL) -> None:
    assert tuple(driven.driver_names(index).decode() for index in range(3)) == plugin.NAME
    int32, float32 = 5, 1  # nvinfer1::PluginFieldType
    assert [driven.driver_field(name) for name in (b"heads", b"scale", b"dim")] == [int32, float32, -1]
    assert driven.driver_creates(8, ctypes.c_float(0.5))
    assert not driven.driver_creates(0, ctypes.c_float(0.5))
    assert not driven.driver_creates(8, ctypes.c_float(0))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("dim", library.HEAD_DIMS)
def test_plugin_computes_attention(driven: ctypes.CDLL, dtype: str, dim: int) -> None:
    problem = Problem(dtype, heads=3, dim=dim, rows=2, shared=2, queries=35, keys=70)
    assert run_plugin(driven, problem, 0.3) == 0
    problem.check(0.3)


def test_plugin_refuses_sizes_that_are_no_attention(driven: ctypes.CDLL) -> None:
    problem = Problem("fp16", heads=1, dim=40, rows=2, shared=2, queries=5, keys=5)
    problem.query_shape = (3, 5, 40)  # of two rows of keys
    assert run_plugin(driven, problem, 1) == -1
    problem.query_shape = (4, 5, 80)
    assert run_plugin(driven, problem, 1) == -1


@pytest.mark.parametrize(
    ("width", "types", "formats", "wanted"),
    [
        (160, [HALF] * 4, [0] * 4, [1, 1, 1, 1]),
        (160, [BF16] * 4, [0] * 4, [1, 1, 1, 1]),
        (160, [FLOAT] * 4, [0] * 4, [0, 0, 0, 0]),
        (160, [HALF, BF16, HALF, HALF], [0] * 4, [1, 0, 1, 1]),
        (160, [HALF] * 4, [0, 0, 2, 0], [1, 1, 0, 1]),
        (164, [HALF] * 4, [0] * 4, [0, 0, 0, 0]),
        (80, [HALF] * 4, [0] * 4, [0, 0, 0, 0]),
    ],
)
def test_plugin_takes_what_the_kernel_does(
    driven: ctypes.CDLL, width: int, types: list[int], formats: list[int], wanted: list[int]
) -> None:
    kinds, layouts = (ctypes.c_int32 * 4)(*types), (ctypes.c_int32 * 4)(*formats)
    found = [driven.driver_supports(4, index, sizes(-1, -1, width), kinds, layouts) & 1 for index in range(4)]
    assert found == wanted


def test_plugin_gives_the_shape_of_the_query(driven: ctypes.CDLL) -> None:
    shape, dtype = sizes(0, 0, 0), ctypes.c_int32()
    assert driven.driver_output(sizes(4, 9, 80), sizes(2, 7, 80), BF16, shape, ctypes.byref(dtype)) == 0
    assert (list(shape), dtype.value) == ([4, 9, 80], BF16)


# -- which nodes --------------------------------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Attentions of fp16 and fp32 of several head dims and scales, of graph inputs and of a projection."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    from facesdk_engines.attention import DOMAIN, OPERATOR, with_function

    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    inputs, outputs, nodes = [], [], []
    for name, kind, dim, scale in (
        ("d40", half, 40, 40**-0.5), ("d20", half, 20, 20**-0.5), ("d96", half, 96, 96**-0.5),
        ("scaled", half, 40, 0.25), ("fp32", full, 40, 40**-0.5), ("bf16", onnx.TensorProto.BFLOAT16, 64, 0.125),
    ):  # fmt: skip
        inputs += [helper.make_tensor_value_info(f"{name}_{i}", kind, ["b", "s", 2 * dim]) for i in "qkv"]
        outputs.append(helper.make_tensor_value_info(name, kind, None))
        given = [f"{name}_{i}" for i in "qkv"]
        if name == "d40":
            nodes.append(helper.make_node("MatMul", [given[0], "weight"], ["projected"]))
            given[0] = "projected"
        nodes.append(helper.make_node(OPERATOR, given, [name], name, domain=DOMAIN, heads=2, scale=scale))
    weight = numpy_helper.from_array(np.ones((80, 80), np.float16), "weight")
    made = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = with_function(helper.make_model(made, opset_imports=opsets, ir_version=10))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()  # weights are not looked at
    return path


@pytest.mark.parametrize(("kind", "nodes"), [("plugin", ("d40", "d96", "scaled", "bf16")), ("aot", ("d40", "bf16"))])
def test_nodes_without_a_kernel_keep_their_function(graph: Path, kind: Any, nodes: tuple[str, ...]) -> None:
    import onnx

    from facesdk_engines.tensorrt.plugin import offer

    offered = offer(graph, kind)
    assert offered.nodes == nodes
    model = onnx.load_model_from_string(offered.model)
    named = {node.name: [each.name for each in node.attribute] for node in model.graph.node if node.domain}
    assert {name for name, words in named.items() if "plugin_namespace" in words} == set(nodes)
    assert all({"heads", "scale"} <= set(words) for words in named.values())
    assert [each.name for each in model.functions] == ["FusedAttention"]


# -- builds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tensorrt-rtx", "precision": "fp16", "attention": "aot"}, "RTX takes no plugins"),
        ({"device": "tensorrt", "attention": "plugin"}, "computes in fp16"),
        ({"device": "tensorrt", "precision": "fp16", "attention": "flash"}, "flash"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**options)


def builder(monkeypatch: pytest.MonkeyPatch, version: str = "11.4.0", found: bool = True) -> Stub:
    """A TensorRT that builds, and knows our plugin once its library is loaded."""
    trt = Stub(version)
    answers = trt.answers
    for owner in ("Builder", "Runtime"):
        answers[owner, "get_plugin_registry"] = lambda self: trt.IPluginRegistry()
    answers["IPluginRegistry", "get_creator"] = lambda self, *name: object() if found and loaded(trt) else None
    answers["Builder", "create_network"] = lambda self, flags: trt.INetworkDefinition()
    answers["Builder", "create_builder_config"] = lambda self: trt.IBuilderConfig()
    answers["Builder", "build_serialized_network"] = lambda self, network, config: b"PLAN"
    answers["INetworkDefinition", "num_layers"] = lambda self: 0
    answers["OnnxParser", "parse"] = lambda self, model, path: bool(loaded(trt)) or "tensorrt.plugin" in sys.modules
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


def loaded(trt: Stub) -> list[Any]:
    return trt.called("IPluginRegistry", "load_library")


def request(graph: Path, attention: str) -> Request:
    options = BuildOptions("tensorrt", "fp16", attention=attention)  # type: ignore[arg-type]
    return Request(graph, graph.with_suffix(".plan"), options, {})


@pytest.mark.parametrize("version", ["10.0.1", "11.4.0"])
def test_build_with_the_library(monkeypatch: pytest.MonkeyPatch, graph: Path, kernels: Path, version: str) -> None:
    trt = builder(monkeypatch, version)
    built = build(request(graph, "plugin"), lambda share, phase: None)
    assert built.plugged == ("d40", "d96", "scaled", "bf16")
    assert loaded(trt) == [[str(kernels / plugin._FILE)]]
    assert trt.called("IPluginRegistry", "get_creator") == [list(plugin.NAME)]
    assert [path for _, path in trt.called("OnnxParser", "parse")] == [str(graph)]
    assert trt.called("OnnxParser", "parse_from_file") == []


def test_build_with_images(monkeypatch: pytest.MonkeyPatch, graph: Path, kernels: Path) -> None:
    trt, found = builder(monkeypatch), Plugins()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", found)
    assert build(request(graph, "aot"), lambda share, phase: None).plugged == ("d40", "bf16")
    assert found.given.keys() == {"register", "autotune", "aot_impl"}
    assert loaded(trt) == []


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, graph: Path, kernels: Path) -> None:
    builder(monkeypatch, found=False)
    with pytest.raises(ProviderUnavailable, match=r"TensorRT 11\.4\.0 cannot load"):
        build(request(graph, "plugin"), lambda share, phase: None)
    (kernels / plugin._FILE).unlink()
    with pytest.raises(MissingDependency, match="attention plugin is not built") as caught:
        build(request(graph, "plugin"), lambda share, phase: None)
    assert "FACESDK_TENSORRT=ON" in str(caught.value)


# -- plans --------------------------------------------------------------------------------------------------


def key(plan: Path, kernel: str) -> Key:
    command = "facesdk build demo --engine step --device tensorrt --precision fp16 --attention plugin"
    return Key(
        engine="step", files={}, builder="tensorrt", version="11.4.0", device="tensorrt", precision="fp16",
        hardware="this", capabilities=("9.0",), gpu="H200", profile={}, flags=(), plan_size=plan.stat().st_size,
        plan_sha256=sha256(plan), command=command, kernel=kernel,
    )  # fmt: skip


def test_a_plan_is_stale_without_its_library(kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    plan, file = tmp_path / "step.plan", kernels / plugin._FILE
    plan.write_bytes(b"PLAN")
    write_key(plan, key(plan, sha256(file)))

    def here() -> Here:
        return Here("11.4.0", kernel=plugin.kernel_for(read_key(plan)))

    assert check(plan, here()).kernel == sha256(file)
    file.write_bytes(b"another plugin")
    with pytest.raises(EngineStale, match=r"(?s)built with another plugin library.*--attention plugin"):
        check(plan, here())
    file.unlink()
    with pytest.raises(EngineStale, match=r"(?s)the plugin library it calls is not here.*--attention plugin"):
        check(plan, here())
    write_key(plan, key(plan, ""))
    assert check(plan, here()).kernel == ""


@pytest.mark.parametrize(("attention", "kernel"), [("plugin", "the library's"), ("aot", ""), ("builtin", "")])
def test_side_cars_name_the_library_that_their_plan_calls(
    monkeypatch: pytest.MonkeyPatch, save_graph: Any, kernels: Path, tmp_path: Path, attention: Any, kernel: str
) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    bundle = make_bundle(save_graph, tmp_path / "demo")

    def pretend(request: Request, on_progress: Any) -> tuple[Built, Request]:
        request.plan.write_bytes(b"PLAN")
        plugged = () if attention == "builtin" else ("a", "b")
        return Built("11.4.0", (), 4, sha256(request.plan), 1.0, None, 3, None, plugged), request

    monkeypatch.setattr(plans, "builds_on", lambda options: H200)
    monkeypatch.setattr(plans, "version", lambda device: "11.4.0")
    monkeypatch.setattr(plans, "build_in_child", pretend)
    file, options = kernels / plugin._FILE, BuildOptions("tensorrt", "fp16", attention=attention)
    (made,) = plans.build_plans(bundle, options)
    assert made.key.kernel == (sha256(file) if kernel else "")
    assert made.key.report.get("plugin") == (None if attention == "builtin" else ["a", "b"])
    assert (f"--attention {attention}" in made.key.command) == (attention != "builtin")
    assert [plan.built for plan in plans.build_plans(bundle, options)] == [False]
    file.write_bytes(b"another plugin")
    assert [plan.built for plan in plans.build_plans(bundle, options)] == [bool(kernel)]
    if kernel:
        file.unlink()
        with pytest.raises(MissingDependency, match="attention plugin is not built"):
            plans.build_plans(bundle, options)


@pytest.mark.parametrize("kernel", ["", "aa"])
def test_plans_that_call_the_library_load_it_first(
    monkeypatch: pytest.MonkeyPatch, save_graph: Any, kernels: Path, tmp_path: Path, kernel: str
) -> None:
    half = trt_execution.install(monkeypatch)
    graph = save_step(save_graph)
    plan = trt_execution.write_plan(tmp_path / "step.plan", graph, PROFILE)
    half.trt.answers["Runtime", "get_plugin_registry"] = lambda self: half.trt.IPluginRegistry()
    half.trt.answers["IPluginRegistry", "get_creator"] = lambda self, *name: object()
    made = dataclasses.replace(trt_execution.key_of(plan, PROFILE), kernel=kernel)
    Engine(TensorRt(plan, made, graph, "tensorrt"), CARD, graph, "test").close()
    assert loaded(half.trt) == ([[str(kernels / plugin._FILE)]] if kernel else [])
    words = [call[1] for call in half.trt.calls if call[1] in ("load_library", "deserialize_cuda_engine")]
    assert words == ["load_library"] * bool(kernel) + ["deserialize_cuda_engine"]
    half.check()
