"""benchmarks/gpu with the GPU left out: a device in host memory whose kernel is the emulator."""

from __future__ import annotations

import csv
import ctypes
import itertools
import math
import os
import shutil
import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import check, check_face, device, placement, pool, problems, report, sdpa, time_attention
from benchmarks.gpu.ceilings import Ceilings, measure
from benchmarks.gpu.cudart import Cudart
from benchmarks.gpu.problems import Problem
from benchmarks.harness import save
from facesdk.cuda.views import View
from facesdk.errors import EngineError
from facesdk.kernels.library import HEAD_DIMS, Arguments
from tests.unit.attention_emulator import HostKernels, _at

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
Array = np.ndarray[Any, Any]


class HostDevice:
    """Memory of the host at addresses as a GPU would give them; its clock adds a millisecond for each sample."""

    kind, name, capability, stream = "host", "NVIDIA H200", (9, 0), 3

    def __init__(self) -> None:
        self.memory = dict[int, Array]()

    def upload(self, data: Array) -> int:
        room = np.empty(data.nbytes + 256, np.uint8)
        start = -room.ctypes.data % 256
        room[start : start + data.nbytes] = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        self.memory[room.ctypes.data + start] = room
        return int(room.ctypes.data + start)

    def download(self, pointer: int, nbytes: int) -> Array:
        return _at(pointer, (nbytes,), np.uint8).copy()

    def free(self) -> None:
        self.memory.clear()

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def record(self, launches: Sequence[Callable[[], Any]]) -> tuple[str, Callable[[], Any]]:
        return "calls", device.in_turn(launches)

    def milliseconds(self, work: Callable[[], Any]) -> float:
        work()
        return 1.0


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def few(count: int = 40) -> list[Problem]:
    """Small variants of every kind."""
    every = [p for p in problems.variants(1) if p.queries <= 65 and p.keys <= 77]
    return every[:: max(1, len(every) // count)]


def examined(kernels: Any, some: Sequence[Problem]) -> list[check.Outcome]:
    rng = np.random.default_rng(0)
    return [check.examine(HostDevice(), kernels, problem, rng) for problem in some]


# -- checking -------------------------------------------------------------------------------------------------------


def test_right_kernels_pass_in_every_variant() -> None:
    some = few()
    assert {p.dim for p in some} == set(HEAD_DIMS)
    assert {p.layout for p in some} <= set(problems.LAYOUTS)
    kernels = HostKernels()
    outcomes = examined(kernels, [*some, *(p for p in problems.variants(4) if p.queries * p.keys < 400)])
    assert [o.wrong for o in outcomes if o.wrong] == []
    assert {o.problem.layout for o in outcomes} == set(problems.LAYOUTS)
    assert max(o.share for o in outcomes) > 0.2
    assert set(kernels.streams) == {HostDevice.stream}


class WritesTooFar(HostKernels):
    def forward(self, arguments: Arguments, stream: int = 0) -> None:
        super().forward(arguments, stream)
        end = arguments.out.data + 2 * (
            (arguments.batch - 1) * arguments.out.batch
            + (arguments.heads - 1) * arguments.out.head
            + (arguments.queries - 1) * arguments.out.row
            + arguments.dim
        )
        ctypes.c_uint16.from_address(end).value = 0


class ReadsTooFar(HostKernels):
    """Takes one key more than there are."""

    def forward(self, arguments: Arguments, stream: int = 0) -> None:
        longer = Arguments.from_buffer_copy(arguments)
        longer.keys += 1
        super().forward(longer, stream)


def last_left_out(out: Array) -> Array:
    out[-1, -1, -1, -1] = np.nan
    return out


COUNTER = itertools.count()


@pytest.mark.parametrize(
    ("kernels", "told"),
    [
        (HostKernels(last_left_out), "1 of"),
        (HostKernels(lambda out: 1.02 * out), "beyond the error bound"),
        (HostKernels(lambda out: out + (next(COUNTER) % 2) * 1e-2), "two runs differ"),
        (WritesTooFar(), "written outside the output"),
        (ReadsTooFar(), "not finite"),
    ],
    ids=["unwritten", "wrong", "unsteady", "writes too far", "reads too far"],
)
def test_wrong_kernels_are_caught(kernels: Any, told: str) -> None:
    outcomes = examined(kernels, [p for p in few() if p.options == () and p.keys > 1])
    assert outcomes
    assert all(told in outcome.wrong for outcome in outcomes)


def test_the_check_covers_what_it_says() -> None:
    every = list(check.chosen(few=False))
    seen = {(p.dim, p.element, p.options) for p in every}
    assert seen >= set(itertools.product(HEAD_DIMS, ("fp16", "bf16"), problems.OPTIONS.values()))
    assert {(p.dim, p.layout) for p in every} >= set(itertools.product(HEAD_DIMS, problems.LAYOUTS))
    # kernels/src/arguments.h: blocks of 128 queries from 512 queries on, two for each of an H200's 132 multiprocessors
    wide = [p for p in every if p.queries >= 512 and -(-p.queries // 128) * p.heads * p.batch >= 2 * 132]
    assert {(p.dim, p.element, p.options) for p in wide} >= {(d, e, o) for d, e, o in seen if d <= 64}
    some = list(check.chosen(few=True))
    assert 5 <= len(some) <= 20
    assert max(p.queries * p.keys for p in some) < 1 << 16


def test_large_problems_are_compared_on_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = check.attend
    monkeypatch.setattr(check, "attend", lambda x, scale: compared.append(x.q.shape[1]) or real(x, scale))
    (outcome,) = examined(HostKernels(), [Problem("large", 24, 1, 700, 600, batch=1)])
    assert compared == [96]
    assert not outcome.wrong


def test_main_reports_and_answers_with_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "wide", lambda: iter(()))  # the emulator takes long for it
    words = ["--few", "--seed", "4", "-o", str(tmp_path / "check.csv")]
    assert check.main(words, HostDevice(), HostKernels()) == 0
    rows = rows_of(tmp_path / "check.csv")
    text = capsys.readouterr().out
    assert f"{len(rows)} of {len(rows)} problems right on NVIDIA H200 by host, seed 4" in text
    assert float(rows[0]["share_of_bound"]) <= 1
    assert check.main(["--few"], HostDevice(), HostKernels(lambda out: 1.1 * out)) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_failing_device_ends_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(HostKernels):
        def forward(self, arguments: Arguments, stream: int = 0) -> None:
            raise EngineError("the launch failed")

    assert check.main(["--few"], HostDevice(), Failing()) == 1
    text = capsys.readouterr().out
    assert "failed, and the rest was not run: the launch failed" in text
    assert "0 of 1 problems" in text


@pytest.mark.parametrize("layout", problems.LAYOUTS)
def test_images_hold_values_between_poison(layout: str) -> None:
    problem = Problem("any", 40, 3, 7, 5, batch=2, layout=layout, element="bf16")
    image = placement.blank(problem, 7)
    assert np.isnan(image.floats()).all()
    seen = image.view(1 << 20)
    assert seen.pointer % 32 == 16
    assert all(stride % 8 == 0 for stride in seen.strides[:3])
    image.values()[...] = 0
    assert image.untouched(image.data)
    for position in (0, image.start - 1, len(image.data) - 1):
        spoilt = image.data.copy()
        spoilt[position] = 0
        assert not image.untouched(spoilt)
    inside = image.data.copy()
    inside[image.start] = 1
    assert image.untouched(inside)


def test_the_python_face_is_checked_against_the_cpu() -> None:
    class Array16:
        def __init__(self, values: Array, element: str) -> None:
            dtype = {"fp16": np.float16, "fp32": np.float32, "uint8": np.uint8}[element]
            room = np.zeros(values.size * 4 + 16, np.uint8)
            start = -room.ctypes.data % 16
            self.held = room[start : start + values.size * np.dtype(dtype).itemsize].view(dtype).reshape(values.shape)
            self.held[...] = values

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {**self.held.__array_interface__, "version": 3}

        def new_empty(self, shape: tuple[int, ...]) -> Array16:
            return Array16(np.zeros(shape), "fp16")

    ways = Array16, lambda array: array.held.astype(np.float32), None
    assert 0 < check_face.difference(ways, "fp16", HostKernels()) < 1e-3
    assert check_face.difference(ways, "fp16", HostKernels(lambda out: 1.1 * out)) > 0.05


# -- problems -------------------------------------------------------------------------------------------------------


def test_operations_and_bytes_are_counted() -> None:
    problem = Problem("any", 40, 8, 4096, 77, 16, batch=2)
    assert problem.flops == 2 * 2 * 2 * 8 * 4096 * 93 * 40
    assert problem.bytes == 2 * 2 * 8 * 40 * (2 * 4096 + 2 * 93)
    assert problem.floor_seconds(1e30, 1e9) == problem.bytes / 1e9
    assert problem.floor_seconds(1e9, 1e30) == problem.flops / 1e9


def test_the_published_shapes_are_timed() -> None:
    timed = list(problems.timed())
    assert len(set(timed)) == len(timed)
    sizes = {(p.heads, p.dim, p.queries, p.keys) for p in timed}
    selves = {(8, 40, 4096), (8, 80, 1024), (8, 160, 256), (8, 160, 64), (8, 40, 1024), (8, 80, 256), (8, 160, 16)}
    assert sizes >= {(heads, dim, n, n) for heads, dim, n in selves}
    assert sizes >= {(heads, dim, n, 77) for heads, dim, n in selves}
    assert sizes >= {(24, 64, 1105, 1105), (64, 24, 1024, 50), (64, 24, 1024, 250), (12, 64, 45, 45)}
    assert sizes >= {(16, 48, 50, 50), (12, 32, 197, 197)}
    assert {p.keys2 for p in timed} == {0, 4, 16}
    assert {p.batch for p in timed} == {2, 8}
    assert all(p.dim in HEAD_DIMS for p in timed)
    assert all(4 <= time_attention.launches_of(p) <= 400 for p in timed)


# -- timing ---------------------------------------------------------------------------------------------------------

SMALL = [
    Problem("self", 24, 2, 16, 16, batch=1),
    Problem("two sets", 24, 2, 16, 9, 4, batch=1, options=("second",)),
    Problem("self", 24, 2, 16, 16, batch=1, element="bf16"),
]


def time_on(host: Any, tmp_path: Path, kernels: Any, *words: str, some: Sequence[Problem] = SMALL) -> int:
    Ceilings("NVIDIA H200", 4e12, 8e14, 7e14).save(tmp_path / "ceilings.json")
    files = [
        "--ceilings",
        str(tmp_path / "ceilings.json"),
        "--results",
        str(tmp_path),
        "-o",
        str(tmp_path / "table.md"),
    ]
    return time_attention.main([*files, "--rounds", "2", *words], host, kernels, lambda: some, 1 << 16)


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_attention, "_MOST_LAUNCHES", 5)


def test_times_become_rows_and_a_table(tmp_path: Path) -> None:
    kernels = HostKernels()
    assert time_on(HostDevice(), tmp_path, kernels) == 0
    rows = rows_of(tmp_path / "h200.csv")
    assert [row["system"] for row in rows] == ["facesdk"] * 3
    assert len(kernels.streams) == 3 * 5 * 3  # problems, launches, rounds with the one not counted
    assert {row["timed_by"] for row in rows} == {"calls"}
    assert float(rows[0]["median_ms"]) == 0.2  # a millisecond for five launches
    assert float(rows[0]["tflops"]) == pytest.approx(SMALL[0].flops / 0.2e-3 / 1e12, rel=1e-3)
    assert rows[0]["calls"] == "10"
    assert rows[0]["ratio_to_sdpa"] == ""
    table = (tmp_path / "table.md").read_text()
    assert "SDPA was left out" in table
    assert "4.00 TB/s copied, products 800 TFLOP/s fp16, 700 bf16" in table
    assert table.count("\n| ") == 1 + len(SMALL)


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert time_on(HostDevice(), tmp_path, HostKernels(), "--seconds", "-1") == 0
    assert capsys.readouterr().out.count("left out, the time is up") == len(SMALL)


class TorchOnHost(HostDevice):
    """The same with torch's own attention beside it, on the processor: one backend of three takes the problems."""

    def __init__(self, torch: Any) -> None:
        super().__init__()
        self.torch = types.SimpleNamespace(nn=torch.nn, cuda=types.SimpleNamespace(synchronize=lambda: None))
        self._dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        self._from_numpy = torch.from_numpy

    def tensor(self, view: View) -> Any:
        data = self._from_numpy(_at(view.pointer, (2 * math.prod(view.shape),), np.uint8))
        return data.view(self._dtypes[view.element]).view(view.shape)


@pytest.mark.filterwarnings("ignore:.*non-writable.*")
def test_peers_that_accept_a_problem_are_timed_and_compared(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch.nn.attention")
    assert time_on(TorchOnHost(torch), tmp_path, HostKernels()) == 0
    rows = rows_of(tmp_path / "h200.csv")
    assert [row["system"] for row in rows] == ["facesdk", "sdpa flash"] * 3
    assert {float(row["ratio_to_sdpa"]) for row in rows} == {1.0}
    assert all(float(row["difference"]) < 1e-2 for row in rows if row["system"] != "facesdk")
    assert "| flash |" in (tmp_path / "table.md").read_text()
    assert time_on(TorchOnHost(torch), tmp_path, HostKernels(lambda out: 1.1 * out)) == 1
    assert "WRONG: two sets" in (tmp_path / "table.md").read_text()


def test_the_backends_are_torchs() -> None:
    attention = pytest.importorskip("torch.nn.attention")
    assert all(hasattr(attention.SDPBackend, name) for name in sdpa.BACKENDS.values())


def test_the_pool_never_hands_out_what_is_in_use() -> None:
    ring = pool.Pool(HostDevice(), "fp16", 1 << 16)
    problem = Problem("any", 24, 1, 20, 30, 7, batch=1)
    taken = list(ring.sets(problem, 30))
    for views in taken:
        spans = sorted((v.pointer, v.pointer + 2 * math.prod(v.shape)) for v in views.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(v.pointer % 256 == 0 for v in views.values())
        assert views["out"].owner == ring.outputs
        assert all(0 <= v.pointer - v.owner <= ring.nbytes - 2 * math.prod(v.shape) for v in views.values())
    assert len({views["q"].pointer for views in taken}) > 4


def test_rows_of_other_benchmarks_stay(tmp_path: Path) -> None:
    save("other", [{"case": "x", "score": 1}], "h200", tmp_path)
    save("attention", [{"case": "old"}], "h200", tmp_path)
    path = save("attention", [{"case": "new", "median_ms": 2.0}], "h200", tmp_path)
    rows = rows_of(path)
    assert [(row["benchmark"], row["case"]) for row in rows] == [("other", "x"), ("attention", "new")]
    assert rows[0]["score"] == "1"
    assert list(rows[0])[:2] == ["benchmark", "date"]


def test_without_torch_there_are_no_ceilings(tmp_path: Path) -> None:
    found = measure(HostDevice())
    found.save(tmp_path / "c.json")
    assert Ceilings.read(tmp_path / "c.json") == Ceilings("NVIDIA H200", None, None, None)
    assert "not measured" in report.markdown("x", "v", [], found)


def test_ceilings_are_bytes_and_operations_over_medians() -> None:
    torch = pytest.importorskip("torch")

    def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *sizes, **options: function(*sizes, dtype=options["dtype"])

    host = HostDevice()
    names = {name: getattr(torch, name) for name in ("uint8", "float16", "bfloat16", "empty_like", "matmul")}
    host.torch = types.SimpleNamespace(  # type: ignore[attr-defined]
        **names, randint=on_host(torch.randint), randn=on_host(torch.randn)
    )
    found = measure(host, copied=1000, size=8)
    assert found.bytes_per_second == 2 * 1000 / 1e-3
    assert found.fp16_flops_per_second == found.flops_per_second("bf16") == 2 * 8**3 / 1e-3


# -- devices --------------------------------------------------------------------------------------------------------

CUDART = """#include <cstdlib>
#include <cstring>
extern "C" {
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaSetDevice(int d) { return d; }
int cudaDeviceGetAttribute(int *v, int a, int) { *v = a == 75 ? 9 : a == 76 ? 0 : -1; return 0; }
int cudaStreamCreate(void **s) { *s = (void *)77; return 0; }
int cudaMalloc(void **p, size_t n) { *p = malloc(n); return n > 1u << 30 ? 2 : 0; }
int cudaMemcpy(void *t, const void *s, size_t n, int) { memcpy(t, s, n); return 0; }
int cudaFree(void *p) { free(p); return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaEventCreate(void **e) { *e = malloc(1); return 0; }
int cudaEventRecord(void *, void *s) { return s == (void *)77 ? 0 : 1; }
int cudaEventSynchronize(void *) { return 0; }
int cudaEventElapsedTime(float *t, void *a, void *b) { *t = a != b ? 1.5f : 0; return 0; }
int cudaEventDestroy(void *e) { free(e); return 0; }
}
"""


def test_the_runtime_is_driven_through_ctypes(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "cudart.cpp").write_text(CUDART)
    target = tmp_path / "libcudart.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", target, tmp_path / "cudart.cpp"], check=True, timeout=60)
    gpu = device.RuntimeDevice(Cudart(target), "cudart")
    assert (gpu.capability, gpu.stream) == ((9, 0), 77)
    data = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(gpu.download(gpu.upload(data), data.nbytes).view(np.float32), data)
    ran: list[int] = []
    how, work = gpu.record([lambda: ran.append(1), lambda: ran.append(2)])
    assert (how, gpu.milliseconds(work), ran) == ("calls", 1.5, [1, 2])
    gpu.free()
    with pytest.raises(RuntimeError, match="cudaMalloc failed with error 2"):
        gpu._call("Malloc", 1 << 31)


def test_a_machine_without_gpu_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("no torch")

    def too_old() -> Any:
        raise RuntimeError("driver too old")

    monkeypatch.setattr(device, "WAYS", {"torch": absent, "cudart": too_old})
    with pytest.raises(SystemExit, match=r"torch: no torch\n  cudart: driver too old"):
        device.open_device("torch,cudart")
    monkeypatch.setattr(device, "WAYS", {"torch": absent, "cudart": HostDevice})
    assert device.open_device("torch,cudart").kind == "host"


@pytest.mark.parametrize("refuses", [False, True])
def test_torch_records_graphs_where_it_can(refuses: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Capture:
        def __init__(self, graph: Any, stream: Any) -> None:
            if refuses:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def __enter__(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...

    replay = types.SimpleNamespace(replay=lambda: "replayed")
    cuda = types.SimpleNamespace(CUDAGraph=lambda: replay, graph=Capture, synchronize=lambda: None)
    gpu = object.__new__(device.TorchDevice)
    gpu.torch, gpu._stream = types.SimpleNamespace(cuda=cuda), None
    ran: list[int] = []
    how, work = gpu.record([lambda: ran.append(1)])
    assert how == ("calls" if refuses else "graph")
    assert work() == (None if refuses else "replayed")
    assert ran == [1, 1]
    assert ("operation not permitted" in capsys.readouterr().out) == refuses


# -- run.sh ---------------------------------------------------------------------------------------------------------

PYTHON = """#!/bin/bash
# says what it was asked for, leaves the files behind that the real programs would, fails where told
echo "$*" >>"$CALLS"
case "$*" in
  *"${FAILING:-nothing}"*) echo "broken"; exit 1 ;;
  *"${UNABLE:-nothing}"*) echo "left out: no such thing here"; exit 3 ;;
  -c*) echo "${PACKAGES:-numpy 2.0}" ;;
  *gpu.engines*) echo "the engines" >"${@: -1}" ;;
  *time_attention*) echo "the table" >"${@: -1}" ;;
  *ceilings*) echo '{}' >"${@: -1}" ;;
  *check*) echo "24 of 24 problems right"; echo "the end" ;;
esac
"""
NVCC = """#!/bin/bash
[[ $1 == --version ]] && { echo "fake nvcc"; exit; }
echo "nvcc $*" >>"$CALLS"
while (($#)); do [[ $1 == -o ]] && cat kernels/src/*.cu >"$2"; shift; done
"""
SANITIZER = """#!/bin/bash
echo "sanitizer $*" >>"$CALLS"
case "$*" in
  *planted*) echo "${FOUND:-Invalid __global__ write of size 4}" ;;
  *) echo "ERROR SUMMARY"; exit "${CODE:-0}" ;;
esac
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout of what run.sh reads, and tools that only say what they were asked for."""
    for folder in ("benchmarks/gpu", "kernels/src", "sdk/facesdk/kernels", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("run.sh", "planted.cu", "ceilings.py", "device.py", "bundles.py"):
        shutil.copy(GPU / name, tmp_path / "benchmarks" / "gpu" / name)
    (tmp_path / "kernels" / "src" / "attention.cu").write_text("// kernel\n")
    for name, text in {"python": PYTHON, "nvcc": NVCC}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run_script(tree: Path, *words: str, **environment: str) -> tuple[int, str, list[str]]:
    """Status, output, and the calls of tools."""
    calls = tree / "calls"
    calls.write_text("")
    path = f"{tree / 'bin'}:/usr/bin:/bin"
    settings = {"PATH": path, "PYTHON": str(tree / "bin" / "python"), "FACESDK_CUDA_ARCH": "90", "CALLS": str(calls)}
    command = ["bash", str(tree / "benchmarks" / "gpu" / "run.sh"), *words]
    done = subprocess.run(
        command,
        env={**settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, calls.read_text().splitlines()


def asked(calls: Sequence[str]) -> list[str]:
    """Programs of the calls, in order; those of the bundles, which run beside others, first."""
    words = [next((word for word in call.split() if "benchmarks.gpu" in word), call.split()[0]) for call in calls]
    return sorted((word.removeprefix("benchmarks.gpu.") for word in words), key=lambda word: word != "bundles")


EVERY = ["bundles"] * 4 + ["nvcc", "check", "check_face", "ceilings", "time_attention", "-c", "engines"]


def test_run_sh_does_everything_once(tree: Path) -> None:
    status, text, calls = run_script(tree)
    assert status == 0, text
    assert asked(calls) == EVERY
    assert next(call for call in calls if call.startswith("nvcc")).count("code=sm_90") == 1
    made = {call.split()[-1] for call in calls if "gpu.bundles" in call}
    assert made == {"annotation", "hififace", "vec2face", "face2diffusion"}
    assert "compute-sanitizer is not here" in text
    report = text.split("# GPU report")[1]
    assert report.index("the table") < report.index("the engines")
    status, text, calls = run_script(tree)
    assert (status, asked(calls)) == (0, ["-c"])
    assert text.count("done already") == 6


def test_run_sh_repeats_what_depends_on_a_change(tree: Path) -> None:
    run_script(tree)
    (tree / "sdk" / "facesdk" / "kernels" / "launch.py").write_text("changed")
    _, text, calls = run_script(tree)
    assert "build: done already" in text
    assert "ceilings: done already" in text
    assert asked(calls) == ["check", "check_face", "time_attention", "-c", "engines"]
    (tree / "kernels" / "src" / "attention.cu").write_text("// another kernel\n")
    _, text, calls = run_script(tree)
    assert text.count("done already") == 3
    assert asked(calls) == ["nvcc", "check", "check_face", "time_attention", "-c"]


def test_run_sh_measures_engines_again_in_another_environment(tree: Path) -> None:
    run_script(tree)
    _, _, calls = run_script(tree, "engines", PACKAGES="onnxruntime-gpu 1.30")
    assert asked(calls) == ["-c", "engines"]


def test_run_sh_makes_bundles_again_when_their_code_changed(tree: Path) -> None:
    run_script(tree, "bundles")
    kept = tree / "build" / "gpu" / "bundles" / "hififace"
    kept.mkdir()
    (kept / "place.json").write_text("{}")
    (tree / "build" / "gpu" / "bundles.done").unlink()  # a run that was stopped in the midst
    run_script(tree, "bundles")
    assert kept.is_dir()
    (tree / "export").mkdir()
    (tree / "export" / "recipe.py").write_text("changed")
    run_script(tree, "bundles")
    assert not kept.exists()


def test_run_sh_takes_bundles_that_somebody_brought(tree: Path) -> None:
    for name in ("one", "other"):
        (tree / "brought" / name).mkdir(parents=True)
        (tree / "brought" / name / "bundle.toml").write_text("")
    _, _, calls = run_script(tree, "bundles", FACESDK_BUNDLES=str(tree / "brought"))
    assert {call.split()[-1] for call in calls} > {str(tree / "brought" / name) for name in ("one", "other")}
    _, _, calls = run_script(tree, "bundles", FACESDK_BUNDLES=str(tree / "brought" / "one"))
    assert str(tree / "brought" / "one") in {call.split()[-1] for call in calls}


def test_run_sh_goes_on_after_a_failed_part_and_says_so(tree: Path) -> None:
    status, text, _ = run_script(tree, FAILING="check_face")
    assert status == 1
    assert "FAILED: check" in text
    assert "the table" in text
    assert "the engines" in text
    status, text, calls = run_script(tree)  # and takes up what failed
    assert status == 0
    assert asked(calls) == ["check", "check_face", "-c"]
    status, text, calls = run_script(tree, "nonsense")
    assert status == 2


def test_run_sh_measures_engines_where_the_kernels_do_not_build(tree: Path) -> None:
    (tree / "bin" / "nvcc").write_text("#!/bin/bash\nexit 1\n")
    status, text, calls = run_script(tree)
    assert status == 1
    assert "FAILED: build" in text
    assert "engines" in asked(calls)


@pytest.mark.parametrize("part", ["bundles", "engines"])
def test_run_sh_tells_what_cannot_be_done_here_and_tries_it_again(tree: Path, part: str) -> None:
    status, text, _ = run_script(tree, UNABLE=f"gpu.{part}")
    assert status == 0, text
    assert "left out: no such thing here" in text
    assert "FAILED" not in text
    _, text, calls = run_script(tree)
    assert part in asked(calls)
    assert f"{part}: done already" not in text
    status, text, _ = run_script(tree, part, FAILING=f"gpu.{part}", PACKAGES="others")
    assert status == (1 if part == "engines" else 0)  # the bundles are done


@pytest.mark.parametrize("failing", ["vec2face", "gpu.engines"])
def test_run_sh_fails_where_bundles_or_engines_do(tree: Path, failing: str) -> None:
    status, text, _ = run_script(tree, FAILING=failing)
    assert status == 1
    assert f"FAILED: {'engines' if 'engines' in failing else 'bundles'}" in text
    assert "the table" in text


@pytest.mark.parametrize(
    ("environment", "told", "status"),
    [
        ({}, "memcheck: finds the planted fault, and nothing in the kernels", 0),
        ({"FOUND": "Device not supported"}, "memcheck: does not work here, it missed a planted fault: Device not", 0),
        ({"CODE": "9"}, "memcheck: WRONG", 1),
    ],
    ids=["works", "does not work", "finds a fault"],
)
def test_run_sh_trusts_a_sanitizer_that_finds_planted_faults(
    tree: Path, environment: dict[str, str], told: str, status: int
) -> None:
    (tree / "bin" / "compute-sanitizer").write_text(SANITIZER)
    (tree / "bin" / "compute-sanitizer").chmod(0o755)
    run_script(tree, "build")
    code, text, _ = run_script(tree, "check", **environment)
    assert told in text
    assert code == status


def test_run_sh_is_executable_and_parses() -> None:
    assert os.access(GPU / "run.sh", os.X_OK)
    subprocess.run(["bash", "-n", GPU / "run.sh"], check=True)
