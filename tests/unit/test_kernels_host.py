"""The CUDA kernels' own source on emulated thread blocks (kernels/host) against attention in float64."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

KERNELS = Path(__file__).parents[2] / "kernels"
SOURCE = KERNELS / "host" / "attention_host.cpp"
SANITIZERS = "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"
HEAD_DIMS = 24, 32, 40, 48, 64, 80, 96, 128, 160
FP16, BF16 = 0, 1
UNIT_ROUNDOFF = {FP16: 2.0**-11, BF16: 2.0**-8}
OK, BAD_ARGUMENT, UNSUPPORTED_HEAD_DIM, MISALIGNED = 0, 2, 3, 5

F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]


class Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row")))


class Attention(ctypes.Structure):
    _fields_ = (
        *((name, Tensor) for name in ("q", "k", "v", "k2", "v2", "out")),
        *((name, ctypes.c_void_p) for name in ("query_bias", "weight2", "region", "subject", "subject2")),
        *((name, ctypes.c_int32) for name in ("batch", "heads", "dim", "queries", "keys", "keys2", "dtype")),
        ("scale", ctypes.c_float),
    )


# -- 16-bit numbers ---------------------------------------------------------------------------------------------------
def encode(x: NDArray[Any], dtype: int) -> U16:
    if dtype == FP16:
        return x.astype(np.float16).view(np.uint16)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(x: U16, dtype: int) -> F64:
    if dtype == FP16:
        return x.view(np.float16).astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


# -- problems ---------------------------------------------------------------------------------------------------------
@dataclass
class Problem:
    """Arrays are (batch, heads, rows, dim) views of 16-bit storage; what lies between their rows is NaN."""

    dtype: int
    scale: float
    q: U16
    k: U16
    v: U16
    out: U16
    k2: U16 | None = None
    v2: U16 | None = None
    bias: U16 | None = None
    weight2: NDArray[np.float32] | None = None
    region: U8 | None = None
    subject: U8 | None = None
    subject2: U8 | None = None

    def arguments(self) -> Attention:
        batch, heads, queries, dim = self.q.shape
        return Attention(
            *(tensor(x) for x in (self.q, self.k, self.v, self.k2, self.v2, self.out)),
            *(address(x) for x in (self.bias, self.weight2, self.region, self.subject, self.subject2)),
            *(batch, heads, dim, queries, self.k.shape[2], 0 if self.k2 is None else self.k2.shape[2]),
            self.dtype,
            self.scale,
        )


def address(x: NDArray[Any] | None) -> int | None:
    return None if x is None else x.ctypes.data


def tensor(x: U16 | None) -> Tensor:
    if x is None:
        return Tensor(None, 0, 0, 0)
    return Tensor(x.ctypes.data, *(stride // 2 for stride in x.strides[:3]))


def storage(count: int) -> U16:
    """`count` NaNs at a 16-byte boundary, with nothing behind them."""
    raw = np.full(2 * count + 16, 0xFF, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + 2 * count].view(np.uint16)


def root(x: U16) -> U16:
    """The array of 16-bit numbers that `x` is a view of."""
    while isinstance(x.base, np.ndarray) and x.base.dtype == np.uint16:
        x = x.base
    return x


def blank(rng: np.random.Generator, batch: int, heads: int, rows: int, dim: int) -> U16:
    """A view of NaNs in one of the layouts that networks have: heads before rows, rows before heads, padded rows."""
    gap = 8 * int(rng.integers(0, 3))
    if rng.random() < 0.5:
        return storage(batch * heads * rows * (dim + gap)).reshape(batch, heads, rows, dim + gap)[..., :dim]
    data = storage(batch * rows * (heads * dim + gap)).reshape(batch, rows, heads * dim + gap)
    return data[..., : heads * dim].reshape(batch, rows, heads, dim).transpose(0, 2, 1, 3)


def blank_packed(batch: int, heads: int, rows: int, dim: int) -> list[U16]:
    """Q, K and V of one projection: (batch, rows, 3, heads, dim)."""
    packed = storage(batch * rows * 3 * heads * dim).reshape(batch, rows, 3, heads, dim)
    return [packed[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]


def random_problem(
    rng: np.random.Generator, dim: int, dtype: int, *, longest: int = 200, blocks: int = 2, plain: bool = False
) -> Problem:
    batch, heads = (int(n) for n in rng.integers(1, blocks + 1, 2))
    queries, keys, keys2 = (int(n) for n in rng.integers(1, rng.choice([20, 80, longest], 3) + 1))
    if rng.random() < 0.25:
        q, k, v = blank_packed(batch, heads, queries, dim)
    else:
        q = blank(rng, batch, heads, queries, dim)
        k, v = (blank(rng, batch, heads, keys, dim) for _ in range(2))
    spread = float(rng.choice([0.3, 1.0, 3.0]))
    for x, deviation in ((q, spread), (k, 1.0), (v, 1.0)):
        x[:] = encode(rng.normal(0, deviation, x.shape), dtype)
    p = Problem(dtype, float(rng.choice([dim**-0.5, 0.2])), q, k, v, blank(rng, batch, heads, queries, dim))
    if plain:
        return p
    if rng.random() < 0.5:
        p.k2, p.v2 = (blank(rng, batch, heads, int(rng.choice([keys2, 1, 4, 16])), dim) for _ in range(2))
        if p.k2.shape != p.v2.shape:
            p.v2 = blank(rng, *p.k2.shape)
        p.k2[:], p.v2[:] = (encode(rng.normal(0, 1, p.k2.shape), dtype) for _ in range(2))
        p.weight2 = rng.choice([0.0, 0.5, 1.0, -1.5], batch).astype(np.float32) if rng.random() < 0.7 else None
    if rng.random() < 0.4:
        p.bias = storage(heads * dim).reshape(heads, dim)
        p.bias[:] = encode(rng.normal(0, 1, (heads, dim)), dtype)
    if rng.random() < 0.5:
        add_regions(rng, p)
    return p


def add_regions(rng: np.random.Generator, p: Problem) -> None:
    """Subjects 0..4 where regions are 0..3; at times no key at all is for anybody."""
    p.region = rng.integers(0, 4, (p.q.shape[0], p.q.shape[2])).astype(np.uint8)
    if p.k2 is None or rng.random() < 0.6:
        p.subject = rng.integers(0, 5, (p.k.shape[0], p.k.shape[2])).astype(np.uint8)
    if p.k2 is not None and rng.random() < 0.8:
        p.subject2 = rng.integers(0, 5, (p.k2.shape[0], p.k2.shape[2])).astype(np.uint8)
    for subject in (p.subject, p.subject2):
        if subject is not None and rng.random() < 0.3:
            subject[:] = rng.choice([2, 255])


# -- the reference ----------------------------------------------------------------------------------------------------
def attend(p: Problem, k: U16, v: U16, subject: U8 | None) -> tuple[F64, F64]:
    """The set's attention, and the same of |v|."""
    query = decode(p.q, p.dtype)
    if p.bias is not None:
        query = decode(encode(query + decode(p.bias, p.dtype)[:, None], p.dtype), p.dtype)
    scores = p.scale * query @ decode(k, p.dtype).swapaxes(2, 3)
    if subject is not None:
        assert p.region is not None
        allowed = (subject[:, None] == 0) | (subject[:, None] == p.region[:, :, None])
        scores = np.where(allowed[:, None], scores, -np.inf)
    largest = scores.max(-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    weights = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
    values = decode(v, p.dtype)
    return weights @ values, weights @ np.abs(values)


def reference(p: Problem) -> tuple[F64, F64]:
    """(batch, heads, queries, dim): the output, and how far rounding may take the kernel from it."""
    out, spread = attend(p, p.k, p.v, p.subject)
    if p.k2 is not None and p.v2 is not None:
        out2, spread2 = attend(p, p.k2, p.v2, p.subject2)
        weight = (np.ones(len(out)) if p.weight2 is None else p.weight2.astype(np.float64))[:, None, None, None]
        out, spread = out + weight * out2, spread + np.abs(weight) * spread2
    # probabilities and outputs are rounded once each; 1e-4: fp32 sums, and the exponentials of scores in fp32
    unit = UNIT_ROUNDOFF[p.dtype]
    return out, (unit + 1e-4) * spread + unit * np.abs(out) + 1e-6


# -- running ----------------------------------------------------------------------------------------------------------
class Kernels:
    """The host build, loaded."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(os.fspath(path))
        self.library.facesdk_host_failure.restype = ctypes.c_char_p

    def run(self, p: Problem, queries: int = 64) -> str:
        """What the emulated thread blocks complained about; nothing when all went well."""
        root(p.out)[...] = 0xFFFF
        code = self.library.facesdk_attention_host(ctypes.byref(p.arguments()), queries)
        return self.library.facesdk_host_failure().decode() or f"error {code}" if code else ""

    def wrong(self, p: Problem, queries: int = 64) -> str:
        """What is wrong with a problem's result."""
        if failure := self.run(p, queries):
            return failure
        want, bound = reference(p)
        excess = np.abs(decode(p.out, p.dtype) - want) - bound
        if not (excess <= 0).all():
            return f"off by {np.nanmax(excess):.2e} more than rounding explains"
        p.out[:] = 0xFFFF
        return "" if (root(p.out) == 0xFFFF).all() else "wrote between or behind the output's rows"

    def check(self, arguments: Attention) -> int:
        return int(self.library.facesdk_attention_check(ctypes.byref(arguments)))


def build(target: Path, *flags: str) -> Path:
    # jumps between fibers' stacks are what the fortified longjmp refuses
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    subprocess.run([*command, "-fPIC", "-shared", *flags, str(SOURCE), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    return Kernels(build(tmp_path_factory.mktemp("kernels") / "libattention_host.so", "-O2"))


VARIANTS = [(dim, queries) for dim in HEAD_DIMS for queries in (64, 128) if queries == 64 or dim <= 64]


@pytest.mark.parametrize(("dim", "queries"), VARIANTS)
def test_random_problems_equal_float64_attention(kernels: Kernels, dim: int, queries: int) -> None:
    rng = np.random.default_rng([dim, queries])
    problems = [random_problem(rng, dim, dtype) for _ in range(11) for dtype in (FP16, BF16)]
    assert [w for w in (kernels.wrong(p, queries) for p in problems) if w] == []


@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_tiles_edges(kernels: Kernels, keys: int, dtype: int) -> None:
    rng = np.random.default_rng(keys)
    for queries, dim in ((1, 40), (63, 24), (64, 128), (65, 64)):
        q, out = (blank(rng, 1, 1, queries, dim) for _ in range(2))
        k, v = (blank(rng, 1, 1, keys, dim) for _ in range(2))
        for x in (q, k, v):
            x[:] = encode(rng.normal(0, 1, x.shape), dtype)
        assert kernels.wrong(Problem(dtype, 0.3, q, k, v, out)) == ""


def test_one_key_returns_its_value(kernels: Kernels) -> None:
    p = random_problem(np.random.default_rng(3), 64, FP16, plain=True)
    p.k, p.v = p.k[:, :, :1], p.v[:, :, :1]
    assert kernels.run(p) == ""
    np.testing.assert_array_equal(p.out, np.broadcast_to(p.v, p.out.shape))


def test_queries_without_an_allowed_key_get_exactly_zero(kernels: Kernels) -> None:
    p = random_problem(np.random.default_rng(4), 40, FP16, plain=True)
    p.region = np.arange(p.q.shape[0] * p.q.shape[2]).reshape(p.q.shape[0], -1).astype(np.uint8) % 2
    p.subject = np.ones((p.k.shape[0], p.k.shape[2]), np.uint8)
    assert kernels.run(p) == ""
    rows = decode(p.out, FP16).transpose(0, 2, 1, 3)
    assert (rows[p.region == 0] == 0).all()
    assert (rows[p.region == 1] != 0).any(-1).all()


def test_scores_far_beyond_what_exponentials_hold(kernels: Kernels) -> None:
    p = random_problem(np.random.default_rng(5), 80, FP16, plain=True)
    p.scale = 50.0
    assert kernels.run(p) == ""
    assert np.isfinite(decode(p.out, FP16)).all()


def changed(problem: Problem, **fields: Any) -> Attention:
    arguments = problem.arguments()
    for name, value in fields.items():
        *path, last = name.split("__")
        target = arguments
        for step in path:
            target = getattr(target, step)
        setattr(target, last, value)
    return arguments


def test_arguments_are_checked(kernels: Kernels) -> None:
    p = random_problem(np.random.default_rng(6), 40, FP16, plain=True)
    base, good = p.q.ctypes.data, p.arguments()
    assert kernels.check(good) == OK
    assert kernels.check(changed(p, k__head=0, v__head=0)) == OK
    assert kernels.check(changed(p, dim=56)) == UNSUPPORTED_HEAD_DIM
    for fields in ({"q__data": base + 8}, {"k__row": 44}, {"out__batch": 4}, {"query_bias": base + 2}):
        assert kernels.check(changed(p, **fields)) == MISALIGNED, fields
    for fields in (
        *({name: 0} for name in ("batch", "heads", "queries", "keys", "scale", "q__data", "out__data")),
        *({"scale": scale} for scale in (-1.0, float("nan"), float("inf"))),
        *({"dtype": 2}, {"heads": 65536}, {"v__row": -8}, {"v__row": 1 << 30}, {"queries": 2**31 - 1}),
        *({"subject": base}, {"k2__data": base, "keys2": 4}, {"k2__data": base, "v2__data": base}),
        {"k2__data": base, "v2__data": base, "keys2": 4, "subject2": base},
    ):
        assert kernels.check(changed(p, **fields)) == BAD_ARGUMENT, fields
    assert kernels.check(changed(p, subject=base, region=base)) == OK


def test_wide_query_tiles_where_they_fill_the_device(kernels: Kernels) -> None:
    p = random_problem(np.random.default_rng(7), 40, FP16, plain=True)

    def tile(**fields: int) -> int:
        return int(kernels.library.facesdk_host_query_tile(ctypes.byref(changed(p, **fields)), 132))

    assert tile(queries=4096, heads=8, batch=2) == 128
    assert tile(queries=4096, heads=8, batch=1) == 64  # 256 wide blocks are less than two for each of 132
    assert tile(queries=511, heads=8, batch=64) == 64
    assert tile(queries=4096, heads=8, batch=2, dim=80) == 64


SANITIZED_RUN = """
import sys
from pathlib import Path
import numpy as np
from tests.unit.test_kernels_host import BF16, FP16, Kernels, random_problem
kernels, rng = Kernels(Path(sys.argv[1])), np.random.default_rng(8)
for dim, queries in ((24, 64), (40, 128), (64, 64), (96, 64), (160, 64)):
    for dtype in (FP16, BF16):
        problem = random_problem(rng, dim, dtype, longest=70, blocks=1)
        if wrong := kernels.wrong(problem, queries):
            sys.exit(wrong)
"""


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Under ASan and UBSan; the arrays' ends are the allocations' ends, so that a stray read is seen."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = ["g++", "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("g++ comes without the address sanitizer's library")
    library = build(tmp_path / "libattention_sanitized.so", *SANITIZERS)
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0",
        "PYTHONPATH": os.pathsep.join([str(KERNELS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    run = [sys.executable, "-c", SANITIZED_RUN, str(library)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
