"""The kernel's arithmetic against float64 attention, against the kernel's own source, and `attention` on the CPU."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.cuda import bfloat16, dlpack
from facesdk.cuda.views import View, read_capsule, view
from facesdk.errors import EngineError, FaceSDKError, MissingDependency, ProviderUnavailable, UsageError
from facesdk.kernels import DeviceArray, attention, cuda_available, library, load, reference
from facesdk.kernels.launch import address_of, arguments_of
from facesdk.kernels.library import HEAD_DIMS, Arguments, Library, Tensor
from facesdk.kernels.operands import Operands, sizes_of
from facesdk.kernels.reference import Array, attend, error_bound
from tests.cuda_fake import FakeCuda
from tests.unit.attention_emulator import Emulator, HostKernels, random_operands

ROOT = Path(__file__).parents[2]


def problems(element: str, count: int, longest: int = 150) -> Iterator[tuple[Operands[Array], float]]:
    """Operands and scale: all head dims, ragged lengths, layouts, masks, small and large scores.

    Small enough for products of one thread: many threads on a busy machine take a hundred times as long.
    """
    rng = np.random.default_rng(5)
    for index in range(count):
        dim = HEAD_DIMS[index % len(HEAD_DIMS)]
        rows = int(rng.integers(1, 40)), int(rng.integers(1, longest)), int(rng.choice([0, 0, 1, 4, 16, 77]))
        batch, heads = ((1, 1), (2, 1), (1, 2))[int(rng.integers(3))]
        spread = float(rng.choice([0.3, 1, 3]))
        yield random_operands(rng, element, dim, rows, batch, heads, spread), float(np.float32(dim**-0.5))


def worst(emulator: Emulator, count: int = 150) -> float:
    """The largest difference from float64 attention, as a share of its bound; inf where a result is not finite."""
    shares = [
        np.abs(emulator(x, scale) - attend(x, scale)) / error_bound(x, scale, emulator.element)  # type: ignore[arg-type]
        for x, scale in problems(emulator.element, count)
    ]
    return max(float(np.max(np.where(np.isfinite(share), share, np.inf))) for share in shares)


# -- the algorithm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ["fp16", "bf16"])
def test_the_tiled_algorithm_stays_within_the_derived_bound(element: str) -> None:
    """And comes near it: a bound that is never approached would prove little."""
    assert 0.4 < worst(Emulator(element)) <= 1


class NothingRescaled(Emulator):
    def rescale(self, before: Array, top: Array, factor: Array) -> Array:
        return np.ones_like(top)


class RescaledToE(Emulator):
    def rescale(self, before: Array, top: Array, factor: Array) -> Array:
        return super().rescale(before, top, np.float32(factor * np.float32(np.log(2))))


class ExponentialsToE(Emulator):
    def weights(self, scores: Array, top: Array, factor: Array) -> Array:
        return super().weights(scores, top, np.float32(factor * np.float32(np.log(2))))


class KeysBehindTheLast(Emulator):
    """Keys up to the end of the tile, zeros as copies leave them, with weights of their own."""

    def one_set(self, q: Array, k: Array, v: Array, mask: Array | None, factor: Array, weight: Array) -> Array:
        missing = [(0, 0), (0, 0), (0, -k.shape[2] % self.tile(k.shape[3])), (0, 0)]
        if mask is not None:
            mask = np.pad(mask, [(0, 0), (0, 0), (0, 0), missing[2]], constant_values=True)
        return super().one_set(q, np.pad(k, missing), np.pad(v, missing), mask, factor, weight)


class OddEightLeftOut(Emulator):
    def one_set(self, q: Array, k: Array, v: Array, mask: Array | None, factor: Array, weight: Array) -> Array:
        whole = k.shape[3] // 16 * 16
        return super().one_set(q, np.where(np.arange(k.shape[3]) < whole, k, 0), v, mask, factor, weight)


class SharedSoftmax(Emulator):
    """One softmax over both sets."""

    def __call__(self, x: Operands[Array], scale: float) -> Array:
        if x.k2 is None or x.v2 is None or x.region is not None:
            return super().__call__(x, scale)
        joined = Operands(x.q, np.concatenate([x.k, x.k2], 1), np.concatenate([x.v, x.v2], 1), None, None, x.query_bias)
        return super().__call__(joined, scale)


class SubjectsOfNobodyMasked(Emulator):
    def allowed(self, region: Array | None, subject: Array | None) -> Array | None:
        if region is None or subject is None:
            return None
        return subject[:, None, None, :] == region[:, None, :, None]


class RuleOnTheFirstSetOnly(Emulator):
    def __call__(self, x: Operands[Array], scale: float) -> Array:
        return super().__call__(dataclasses.replace(x, subject2=None), scale)


class ScoresNarrowed(Emulator):
    def weights(self, scores: Array, top: Array, factor: Array) -> Array:
        return super().weights(self.narrow(scores), self.narrow(top), factor)


class SumsNarrowed(Emulator):
    def product(self, a: Array, b: Array, sums: Array) -> Array:
        return self.narrow(super().product(a, b, sums))


class BiasForgotten(Emulator):
    def biased(self, q: Array, bias: Array | None) -> Array:
        return q


class WeightForgotten(Emulator):
    def __call__(self, x: Operands[Array], scale: float) -> Array:
        return super().__call__(dataclasses.replace(x, weight2=None), scale)


class FirstTileOnly(Emulator):
    def one_set(self, q: Array, k: Array, v: Array, mask: Array | None, factor: Array, weight: Array) -> Array:
        size = self.tile(k.shape[3])
        first = None if mask is None else mask[..., :size]
        return super().one_set(q, k[:, :, :size], v[:, :, :size], first, factor, weight)


FAULTS = [
    NothingRescaled, RescaledToE, ExponentialsToE, KeysBehindTheLast, OddEightLeftOut, SharedSoftmax,
    SubjectsOfNobodyMasked, RuleOnTheFirstSetOnly, ScoresNarrowed, SumsNarrowed, BiasForgotten, WeightForgotten,
    FirstTileOnly,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("element", ["fp16", "bf16"])
def test_a_fault_in_the_algorithm_breaks_the_bound(fault: type[Emulator], element: str) -> None:
    assert worst(fault(element), 60) > 1.5


def test_the_bound_grows_with_a_worse_sum() -> None:
    x, scale = next(problems("fp16", 1))
    assert (error_bound(x, scale, "fp16", 2.0**-19) > error_bound(x, scale, "fp16")).all()


# -- the kernel's own source ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host_build(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = ROOT / "kernels" / "host" / "attention_host.cpp"
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    target = tmp_path_factory.mktemp("kernels") / "libhost.so"
    subprocess.run(["g++", "-O2", "-std=c++17", "-shared", "-fPIC", "-o", target, source], check=True, timeout=120)
    build = ctypes.CDLL(str(target))
    build.facesdk_host_failure.restype = ctypes.c_char_p
    return build


@pytest.mark.parametrize("element", ["fp16", "bf16"])
def test_emulator_and_kernel_source_round_at_the_same_places(host_build: ctypes.CDLL, element: str) -> None:
    """Sums of weights alone are taken in another order: all but a few outputs are equal to the bit."""
    apart, count = 0, 0
    for x, scale in problems(element, 54):
        small = dataclasses.replace(x, **{name: _first(name, array) for name, array in x.given().items()})
        want, got = Emulator(element)(small, scale), _run_on_host(host_build, element, small, scale)
        assert (np.abs(got - want) <= error_bound(small, scale, element)).all()  # type: ignore[arg-type]
        apart, count = apart + int((got != want).sum()), count + want.size
    assert apart < 3e-3 * count


def _first(name: str, array: Array) -> Array:
    """The first sample and head: emulated thread blocks are slow."""
    if name == "query_bias":
        return array[:1]
    return array[:1] if array.ndim < 4 else array[:1, :, :1]


def _run_on_host(build: ctypes.CDLL, element: str, x: Operands[Array], scale: float) -> Array:
    kept = {name: _stored(array, element) for name, array in x.given().items()}
    kept["out"] = _stored(np.full(x.q.shape, np.nan, np.float32), element)
    views = {name: _host_view(array, element) for name, array in kept.items()}
    arguments = arguments_of(views, sizes_of({name: seen.shape for name, seen in views.items()}), scale)
    code = build.facesdk_attention_host(ctypes.byref(arguments), 64)
    assert code == 0, build.facesdk_host_failure()
    out = kept["out"]
    return bfloat16.from_bits(out) if element == "bf16" else out.astype(np.float32)


def _stored(array: Array, element: str) -> Array:
    """As a device holds it, at an address that is a multiple of 16."""
    if array.dtype != np.uint8 and array.ndim > 1:
        array = bfloat16.to_bits(array) if element == "bf16" else array.astype(np.float16)
    room = np.zeros(array.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    out = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def _host_view(array: Array, element: str) -> View:
    names = {np.dtype(np.uint8): "uint8", np.dtype(np.float32): "fp32"}
    strides = tuple(step // array.itemsize for step in array.strides)
    return View(array.ctypes.data, array.shape, strides, names.get(array.dtype, element), array)


def test_the_structures_are_laid_out_as_the_header_says(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    fields = [name for name, _ in Arguments._fields_]
    offsets = ", ".join(f"offsetof(facesdk_attention, {name})" for name in fields)
    rest = "sizeof(facesdk_attention), offsetof(facesdk_tensor, row), FACESDK_BF16"
    code = f'#include <cstddef>\n#include "facesdk_attention.h"\nextern "C" long at[] = {{{offsets}, {rest}}};'
    (tmp_path / "layout.cpp").write_text(code)
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-I",
        ROOT / "kernels" / "include",
        "-o",
        tmp_path / "l.so",
        tmp_path / "layout.cpp",
    ]
    subprocess.run(command, check=True, timeout=60)
    at = (ctypes.c_long * (len(fields) + 3)).in_dll(ctypes.CDLL(str(tmp_path / "l.so")), "at")
    ours = [getattr(Arguments, name).offset for name in fields]
    assert list(at) == [*ours, ctypes.sizeof(Arguments), Tensor.row.offset, library.DTYPES["bf16"]]


# -- `attention` on the CPU -----------------------------------------------------------------------------------------


def by_definition(x: Operands[Array], scale: float) -> Array:
    """The formula, query by query."""
    out = np.zeros(x.q.shape)
    for b, i, h in np.ndindex(x.q.shape[:3]):
        q = x.q[b, i, h].astype(np.float64) + (0 if x.query_bias is None else x.query_bias[h])
        for k, v, subject, weight in ((x.k, x.v, x.subject, None), (x.k2, x.v2, x.subject2, x.weight2)):
            if k is None or v is None:
                continue
            keys = range(k.shape[1])
            open_ = [j for j in keys if subject is None or subject[b, j] in (0, x.region[b, i])]  # type: ignore[index]
            powers = {j: np.exp(scale * float(q @ k[b, j, h].astype(np.float64))) for j in open_}
            for j, power in powers.items():
                out[b, i, h] += (1 if weight is None else weight[b]) * power / sum(powers.values()) * v[b, j, h]
    return out


def call(x: Operands[Array], **options: Any) -> Any:
    second = None if x.k2 is None else (x.k2, x.v2)
    return attention(
        x.q, x.k, x.v, second=second, weight2=x.weight2, region=x.region, subject=x.subject, subject2=x.subject2,
        query_bias=x.query_bias, **options,
    )  # fmt: skip


def as_float32(x: Operands[Array]) -> Operands[Array]:
    return Operands(**{n: a if a.dtype == np.uint8 else a.astype(np.float32) for n, a in x.given().items()})


def test_attention_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_ROWS", 3)
    rng, combined = np.random.default_rng(2), 0
    for _ in range(20):
        x = random_operands(rng, "fp16", 16, (7, 9, int(rng.choice([0, 4]))), 2, 2, 0.7)
        got = call(x, scale=0.3)
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, by_definition(x, 0.3).astype(np.float16))
        combined += x.subject2 is not None
    assert combined


def test_every_dtype_is_rounded_once() -> None:
    x = as_float32(next(problems("fp16", 1))[0])
    exact = attend(x, x.q.shape[3] ** -0.5)
    np.testing.assert_array_equal(call(x), exact.astype(np.float32))
    narrow = as_float32(next(problems("bf16", 1))[0])  # holds bfloat16 values only: rounding them changes nothing
    np.testing.assert_array_equal(call(narrow, dtype="bf16"), bfloat16.rounded(attend(narrow, 24**-0.5)))
    coarse = Operands(*(bfloat16.rounded(a) for a in (x.q, x.k, x.v)))
    wanted = bfloat16.rounded(attend(coarse, 24**-0.5))
    np.testing.assert_array_equal(attention(x.q, x.k, x.v, dtype="bf16"), wanted)


def test_bfloat16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    values = (
        np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
        * 10.0 ** np.arange(-30, 30).repeat(167)[:10_000]
    )
    values = np.concatenate([values, [0, -0.0, np.inf, -np.inf, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]]).astype(np.float32)
    want = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(bfloat16.rounded(values), want.float().numpy())
    np.testing.assert_array_equal(bfloat16.to_bits(values), want.view(torch.uint16).numpy())
    assert np.isnan(bfloat16.rounded(np.array([np.nan], np.float32)))[0]
    # rounded once: by way of float32 this would be 1
    assert bfloat16.rounded(np.array([1 + 2.0**-8 + 2.0**-40]))[0] == 1 + 2.0**-7


def test_queries_without_keys_get_nothing_and_strides_are_free() -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(1, 6, 2, 8)).astype(np.float32) for _ in range(3))
    region, subject = np.array([[1, 1, 2, 2, 0, 3]], np.uint8), np.full((1, 6), 2, np.uint8)
    out = attention(q, k, v, region=region, subject=subject)
    assert not out[0, [0, 1, 4, 5]].any()
    assert out[0, [2, 3]].all()
    turned = attention(q[:, ::-1], k[:, ::-1], v[:, ::-1], region=region[:, ::-1], subject=subject)
    np.testing.assert_allclose(turned, out[:, ::-1], rtol=1e-6)


def test_out_is_filled_and_returned() -> None:
    x = as_float32(next(problems("fp16", 1))[0])
    out = np.full(x.q.shape, np.nan, np.float32)
    assert call(x, out=out) is out
    np.testing.assert_array_equal(out, call(x))


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


ROWS = ones(2, 5, 3, 8)
CODES = ones(2, 5, dtype=np.uint8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": ones(2, 7, 3, 8)}, "v has shape (2, 5, 3, 8)"),
        ({"k": ones(2, 7, 4, 8), "v": ones(2, 7, 4, 8)}, "heads = 3"),
        ({"q": ones(2, 5, 24)}, "(batch, queries, heads, dim)"),
        ({"q": ones(2, 0, 3, 8)}, "none of them 0"),
        ({"second": (ones(2, 4, 3, 8), ones(2, 3, 3, 8))}, "keys2 = 4"),
        ({"weight2": ones(2)}, "second=(k2, v2)"),
        ({"subject": CODES}, "region"),
        ({"region": CODES, "subject": ones(2, 5)}, "subject is float32, not uint8"),
        ({"q": ones(2, 5, 3, 8, dtype=np.float64)}, "q is float64"),
        ({"k": ones(2, 5, 3, 8, dtype=np.float16)}, "k is float16, not float32"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"dtype": "fp8"}, "choose one of: bf16"),
        ({"out": ones(2, 5, 3, 9)}, "out has shape"),
        ({"k": [[1.0]]}, "q, v: NumPy; k: not"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_arguments_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        attention(**{"q": ROWS, "k": ROWS, "v": ROWS, **change})
    assert told in str(error.value)


# -- arrays on a GPU, with the GPU left out -------------------------------------------------------------------------


class OnDevice:
    """A host array that says it is on the GPU."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        assert function is np.empty_like
        return OnDevice(_stored(np.zeros(self.array.shape, np.float16), "fp16"))


def test_device_arrays_reach_the_library_as_they_lie() -> None:
    ran = 0
    for x, scale in problems("fp16", 18):
        # copies that keep their layout where it fits, as torch and CuPy lay arrays out
        placed = {name: OnDevice(_stored(array, "fp16")) for name, array in x.given().items()}
        kernels = HostKernels()
        out = call(Operands(**placed), stream=7, kernels=kernels)  # type: ignore[arg-type]
        np.testing.assert_array_equal(out.array, Emulator("fp16")(x, scale))
        assert kernels.streams == [7]
        ran += 1
    assert ran == 18


def test_rows_of_a_fused_projection_are_read_in_place() -> None:
    fused = _stored(np.random.default_rng(3).normal(size=(2, 9, 3, 2, 24)).astype(np.float32), "fp16")
    q, k, v = (fused[:, :, i] for i in range(3))
    out = OnDevice(_stored(np.zeros((2, 2, 9, 24), np.float32), "fp16").swapaxes(1, 2))
    got = attention(*map(OnDevice, (q, k, v)), out=out, kernels=HostKernels())  # type: ignore[arg-type]
    assert got is out
    np.testing.assert_array_equal(out.array, Emulator("fp16")(Operands(q, k, v), 24**-0.5))


def test_codes_may_be_bools() -> None:
    q, k, v = (device(1, 4, 2, 24) for _ in range(3))
    codes = np.array([[True, False, True, True]])
    results = [
        attention(q, k, v, region=OnDevice(held), subject=OnDevice(held), kernels=HostKernels()).array  # type: ignore[arg-type]
        for held in (codes, codes.astype(np.uint8))
    ]
    np.testing.assert_array_equal(*results)


def device(*shape: int, dtype: Any = np.float16) -> OnDevice:
    return OnDevice(_stored(np.ones(shape, dtype), "fp16") if dtype == np.float16 else np.ones(shape, dtype))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": np.ones((1, 4, 2, 24), np.float16)}, "k: NumPy; q, v: not"),
        ({"q": device(1, 4, 2, 24, dtype=np.float32)}, "q is fp32"),
        ({"k": device(1, 4, 2, 24, dtype=np.float32)}, "k is fp32, not fp16"),
        ({n: device(1, 4, 2, 56) for n in "qkv"}, "24, 32, 40"),
        ({"k": OnDevice(device(1, 4, 24, 2).array.swapaxes(2, 3))}, "make its last axis contiguous"),
        ({"k": OnDevice(device(1, 4, 2, 28).array[..., :24])}, "multiples of 8"),
        ({"k": OnDevice(device(1, 4, 2, 32).array[..., 4:28])}, "address that is a multiple of 16"),
        ({"k": OnDevice(device(1, 4, 2, 24).array[:, ::-1])}, "strides that are multiples of 8"),
        ({"query_bias": OnDevice(device(24, 2).array.T)}, "query_bias is not contiguous"),
        ({"q": device(1, 4, 2, 24, dtype=np.float64)}, "q is fp64"),
        ({"dtype": "bf16"}, "leave it out"),
        ({"stream": "main"}, "stream is a str"),
        ({"q": 3}, "q is a int"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_device_arrays_that_cannot_be_read_are_named(change: dict[str, Any], told: str) -> None:
    arrays = {name: device(1, 4, 2, 24) for name in "qkv"}
    with pytest.raises(UsageError) as error:
        attention(**{**arrays, "kernels": HostKernels(), **change})
    assert told in str(error.value)


def test_an_axis_of_one_element_may_have_any_stride() -> None:
    padded = device(1, 4, 2, 32).array
    array = np.lib.stride_tricks.as_strided(padded, (1, 4, 2, 24), (6, *padded.strides[1:]))
    assert OnDevice(array).__cuda_array_interface__["strides"][0] == 6
    attention(OnDevice(array), device(1, 4, 2, 24), device(1, 4, 2, 24), kernels=HostKernels())  # type: ignore[arg-type]


def test_dlpack_capsules_are_read_in_place() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(48, dtype=torch.bfloat16).reshape(2, 3, 8)[:, 1:]
    seen = read_capsule(tensor.__dlpack__(), "q")
    assert (seen.pointer, seen.shape, seen.strides, seen.element) == (tensor.data_ptr(), (2, 2, 8), (24, 8, 1), "bf16")
    capsule = tensor.__dlpack__()
    dlpack.Tensor.of(capsule).byte_offset = 32
    assert read_capsule(capsule, "q").pointer == tensor.data_ptr() + 32
    assert read_capsule(torch.zeros(3, dtype=torch.bool).__dlpack__(), "region").element == "bool"
    with pytest.raises(UsageError, match="type code 5 with 64 bits"):
        read_capsule(torch.zeros(3, dtype=torch.complex64).__dlpack__(), "q")
    with pytest.raises(UsageError, match="q is not on a CUDA device"):
        view(tensor, "q")


def test_streams_of_other_packages_are_understood() -> None:
    torch_like, cupy_like = types.SimpleNamespace(cuda_stream=5), types.SimpleNamespace(ptr=6)
    protocol = types.SimpleNamespace(__cuda_stream__=lambda: (0, 8))
    assert [address_of(s) for s in (None, 4, torch_like, cupy_like, protocol)] == [0, 4, 5, 6, 8]


# -- the library ----------------------------------------------------------------------------------------------------


def compiled(folder: Path, version: int = library.VERSION, code: int = 0) -> Path:
    """A library that has the C ABI and always answers `code`."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    text = f"""#include "facesdk_attention.h"
    int32_t facesdk_attention_check(const facesdk_attention *) {{ return {code}; }}
    int32_t facesdk_attention_forward(const facesdk_attention *, void *) {{ return {code}; }}
    const char *facesdk_error_text(int32_t) {{ return "told by the library"; }}
    int32_t facesdk_cuda_available(void) {{ return 1; }}
    int32_t facesdk_attention_version(void) {{ return {version}; }}"""
    folder.mkdir(exist_ok=True)
    (folder / "fake.cpp").write_text(text)
    target = folder / library._FILE
    include = ROOT / "kernels" / "include"
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-I", include, "-o", target, folder / "fake.cpp"], check=True, timeout=60
    )
    return target


def test_the_library_is_found_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiled(tmp_path / "a")
    monkeypatch.setattr(library, "_HERE", tmp_path / "nothing")
    monkeypatch.setattr(library, "_CHECKOUT", tmp_path)
    monkeypatch.delenv(library.VARIABLE, raising=False)
    with pytest.raises(MissingDependency, match=r"cmake --preset all"):
        load()
    assert not cuda_available()
    assert load(path).path == load(path.parent).path == path
    monkeypatch.setenv(library.VARIABLE, str(path))
    assert load().path == path
    assert cuda_available()
    monkeypatch.delenv(library.VARIABLE)
    (tmp_path / "build").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "build" / "kernels")
    assert load().path == tmp_path / "build" / "kernels" / path.name
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "elsewhere"))  # named, so no other place will do
    with pytest.raises(MissingDependency, match="elsewhere"):
        load()


def test_libraries_of_another_kind_or_version_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    with pytest.raises(ProviderUnavailable, match=r"other\.so is no kernel library"):
        load(other)
    with pytest.raises(ProviderUnavailable, match="version 99 of the interface"):
        load(compiled(tmp_path / "a", version=99))


CODES_OF_ERRORS = [
    ProviderUnavailable,
    UsageError,
    UsageError,
    ProviderUnavailable,
    UsageError,
    EngineError,
    EngineError,
]


@pytest.mark.parametrize(("code", "kind"), list(enumerate(CODES_OF_ERRORS, 1)))
def test_error_codes_become_errors(tmp_path: Path, code: int, kind: type[FaceSDKError]) -> None:
    kernels = Library(compiled(tmp_path / "a", code=code))
    for method in (kernels.check, kernels.forward):
        with pytest.raises(kind, match="told by the library") as error:
            method(Arguments())
        assert error.value.remedy


# -- memory without torch -------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake = FakeCuda().install(monkeypatch)
    yield fake
    fake.check()


def test_device_arrays_go_through_the_kernel(cuda: FakeCuda) -> None:
    values = np.random.default_rng(0).normal(size=(1, 5, 2, 24)).astype(np.float32)
    arrays = [DeviceArray.of(values, "bf16") for _ in range(3)]
    out = attention(*arrays, kernels=HostKernels())  # type: ignore[arg-type]
    coarse = bfloat16.rounded(values)
    np.testing.assert_array_equal(out.numpy(), Emulator("bf16")(Operands(coarse, coarse, coarse), 24**-0.5))
    assert cuda.used == 4 * out.nbytes
