"""What nvcc makes of the kernels, for one architecture: registers, no spills, the instructions meant."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "kernels" / "src"
GROUPS = "small", "medium", "large"
ARCHITECTURE = "90"
HEAD_DIMS = 24, 32, 40, 48, 64, 80, 96, 128, 160
VARIANTS = {(dtype, dim, q) for dtype in (0, 1) for dim in HEAD_DIMS for q in (64, 128) if q == 64 or dim <= 64}

REGISTERS = 65536  # of a multiprocessor
THREADS = 128

#: those whose two stages of keys stay within 48 KB
IMAGES = sorted((dim, queries) for dtype, dim, queries in VARIANTS if dtype == 0 and dim != 96)

KERNEL = re.compile(r"attention_kernelILi(?P<dtype>\d)ELi(?P<dim>\d+)ELi(?P<queries>\d+)E")


@dataclass(frozen=True)
class Usage:
    stack: int
    spilled: int
    registers: int


@dataclass(frozen=True)
class Group:
    """One compiled file: the compiler's report by (dtype, head dim, queries), and where its code is."""

    usage: dict[tuple[int, int, int], Usage]
    ptx: str
    cubin: Path


def variant(found: re.Match[str]) -> tuple[int, int, int]:
    return int(found["dtype"]), int(found["dim"]), int(found["queries"])


def usages(report: str) -> Iterator[tuple[tuple[int, int, int], Usage]]:
    pattern = KERNEL.pattern + r"\S*\s+(\d+) bytes stack frame, (\d+) bytes spill stores.*?\n.*?Used (\d+) registers"
    for found in re.finditer(pattern, report):
        yield variant(found), Usage(*(int(n) for n in found.groups()[3:]))


def compile_group(name: str, folder: Path) -> Group:
    keep = folder / name
    keep.mkdir()
    target = f"-gencode=arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}"
    command = ["nvcc", "-std=c++17", "-O3", target, "-Xptxas", "-v", "--keep", f"--keep-dir={keep}", "-cubin"]
    cubin = keep / "kernels.cubin"
    source = SOURCES / f"attention_{name}.cu"
    done = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    return Group(dict(usages(report)), (keep / f"attention_{name}.ptx").read_text(), cubin)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("kernels")
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda name: compile_group(name, folder), GROUPS))


def disassembler() -> str | None:
    """The nvdisasm of the CUDA toolkit, or the one that triton's package carries."""
    if found := shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    carried = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return str(carried) if carried.exists() else None


def test_every_variant_is_compiled(groups: list[Group]) -> None:
    assert {key for group in groups for key in group.usage} == VARIANTS


def test_nothing_spills(groups: list[Group]) -> None:
    usage = {key: use for group in groups for key, use in group.usage.items()}
    assert {key: use for key, use in usage.items() if use.stack or use.spilled} == {}


def test_two_thread_blocks_fit_the_register_file(groups: list[Group]) -> None:
    for group in groups:
        for key, use in group.usage.items():
            rounded = -(-use.registers // 8) * 8
            assert 2 * THREADS * rounded <= REGISTERS, key


def test_kernels_use_the_instructions_they_are_written_in(groups: list[Group]) -> None:
    bodies = {variant(entry): body for group in groups for entry, body in entries(group.ptx)}
    assert bodies.keys() == VARIANTS
    for (dtype, dim, _), body in bodies.items():
        kind = "bf16" if dtype else "f16"
        assert f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32" in body
        assert (f"mma.sync.aligned.m16n8k8.row.col.f32.{kind}.{kind}.f32" in body) == (dim % 16 == 8)
        assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in body
        assert "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16" in body
        assert "cp.async.cg.shared.global" in body
        assert "ex2.approx.ftz.f32" in body
        assert ".local" not in body


def entries(ptx: str) -> Iterator[tuple[re.Match[str], str]]:
    for body in ptx.split(".entry")[1:]:
        if found := KERNEL.search(body):
            yield found, body


def test_machine_code_keeps_everything_in_registers(groups: list[Group]) -> None:
    tool = disassembler()
    if tool is None:
        pytest.skip("neither the CUDA toolkit's nvdisasm nor triton's is installed")
    for group in groups:
        code = subprocess.run([tool, "-c", str(group.cubin)], capture_output=True, text=True, check=True).stdout
        for body in re.split(r"\n\.text\.", code)[1:]:
            found = KERNEL.search(body)
            if found is None:
                continue
            assert {op: len(re.findall(rf"\b{op}\b", body)) for op in ("LDL", "STL")} == {"LDL": 0, "STL": 0}
            assert len(re.findall(r"\bHMMA\.", body)) == products(int(found["dim"]), int(found["queries"])), found[0]
            assert "LDSM" in body
            assert "LDGSTS" in body


def products(dim: int, queries: int) -> int:
    """Matrix instructions of one tile of keys and one warp: none for padding."""
    keys, steps = (32 if dim > 96 else 64), -(-dim // 16)
    return queries // 64 * (keys // 8 * steps + keys // 16 * (dim // 8))


# -- images of ahead-of-time plugins --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[str, str]]:
    """PTX, and what ptxas says of it for ARCHITECTURE, by head dim and queries of a thread block; fp16."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("images")

    def compile_image(size: tuple[int, int]) -> tuple[str, str]:
        dim, queries = size
        ptx = folder / f"{dim}_{queries}.ptx"
        macros = {"DTYPE": 0, "DIM": dim, "QUERIES": queries, "ENTRY": f"image_{dim}_{queries}"}
        words = [f"-DFACESDK_{name}={value}" for name, value in macros.items()]
        source = str(SOURCES.parent / "plugin" / "image.cu")
        make = ["nvcc", "-std=c++17", "-O3", "-arch=compute_80", "-ptx", *words, source, "-o", str(ptx)]
        for_gpu = ["ptxas", "-v", f"-arch=sm_{ARCHITECTURE}", str(ptx), "-o", str(ptx.with_suffix(".cubin"))]
        done = [subprocess.run(each, capture_output=True, text=True, check=False) for each in (make, for_gpu)]
        assert [each.returncode for each in done] == [0, 0], done
        return ptx.read_text(), done[1].stderr + done[1].stdout

    with ThreadPoolExecutor() as pool:
        return dict(zip(IMAGES, pool.map(compile_image, IMAGES), strict=True))


def test_images_take_pointers_and_integers(images: dict[tuple[int, int], tuple[str, str]]) -> None:
    assert len(images) == 13
    for (dim, queries), (ptx, _) in images.items():
        (parameters,) = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
        assert parameters[0] == f"image_{dim}_{queries}"
        kinds = re.findall(r"\.param \.(\w+)", parameters[1])
        assert kinds == ["u64"] * 3 + ["u32"] * 3 + ["u64"]
        assert ".target sm_80" in ptx
        assert ".local" not in ptx


def test_images_keep_everything_in_registers(images: dict[tuple[int, int], tuple[str, str]]) -> None:
    for size, (_, report) in images.items():
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report, size
        (registers,) = re.findall(r"Used (\d+) registers", report)
        assert 2 * THREADS * -(-int(registers) // 8) * 8 <= REGISTERS, size
