"""The NVIDIA driver as ctypes meets it: a small library with the driver's functions, compiled for the test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from facesdk import nvidia
from facesdk.nvidia import Driver, Gpu

CUDA = """
#include <stddef.h>
#include <string.h>
static int ready;
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuInit(unsigned flags) { ready = flags == 0 && INIT == 0; return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return ready ? 0 : 3; }
int cuDeviceGet(int *device, int index) { *device = 70 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    const char *mine = device == 70 ? "NVIDIA GeForce RTX 4090" : "NVIDIA H200";
    if (strlen(mine) >= (size_t)size) return 1;
    strcpy(name, mine);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 70 ? 25757220864u : 150754820096u; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute == 75) *value = device == 70 ? 8 : 9;
    else if (attribute == 76) *value = device == 70 ? 9 : 0;
    else return 1;
    return 0;
}
"""
NVML = """
#include <string.h>
static int open;
int nvmlInit_v2(void) { open = INIT == 0; return INIT; }
int nvmlShutdown(void) { open = 0; return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    if (!open || size < 12) return 1;
    strcpy(version, "580.65.06");
    return 0;
}
"""
Compile = Callable[..., str]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Source and macros -> the path of a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")

    def compile_(name: str, source: str, **macros: int) -> str:
        target = tmp_path / f"{name}.so"
        words = [f"-D{macro}={value}" for macro, value in macros.items()]
        command = [compiler, "-shared", "-fPIC", *words, "-x", "c", "-", "-o", str(target)]
        subprocess.run(command, input=source, text=True, check=True)
        return str(target)

    return compile_


def install(monkeypatch: pytest.MonkeyPatch, cuda: str, nvml: str = "libnosuchmanagement.so.1") -> None:
    monkeypatch.setattr(nvidia, "_CUDA", cuda)
    monkeypatch.setattr(nvidia, "_NVML", nvml)


def test_every_gpu_is_read(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, compiled("cuda", CUDA, INIT=0, COUNT=2), compiled("nvml", NVML, INIT=0))
    found = nvidia.driver()
    gpus = (Gpu("NVIDIA GeForce RTX 4090", "8.9", 25757.220864), Gpu("NVIDIA H200", "9.0", 150754.820096))
    assert found == Driver("580.65.06", "13.2", gpus)
    assert str(found) == "580.65.06, CUDA 13.2"


@pytest.mark.parametrize(("code", "count", "error"), [(803, 1, 803), (0, 0, 0)])
def test_a_driver_without_a_gpu(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch, code: int, count: int, error: int
) -> None:
    install(monkeypatch, compiled("cuda", CUDA, INIT=code, COUNT=count))
    assert nvidia.driver() == Driver("", "13.2", (), error)
    assert str(nvidia.driver()) == "CUDA 13.2"


def test_a_version_that_is_not_told(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, compiled("cuda", CUDA, INIT=0, COUNT=1), compiled("nvml", NVML, INIT=9))
    found = nvidia.driver()
    assert found is not None
    assert (found.version, len(found.gpus)) == ("", 1)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "libnosuchdriver.so.1")
    assert nvidia.driver() is None
