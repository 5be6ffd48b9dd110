"""The machine and the Python environment: processor, memory of this process, versions, wheels in conflict."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

#: distribution -> the ones that may stand in for it, because they install the same Python package
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": (
        "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn", "onnxruntime-migraphx",
        "onnxruntime-rocm", "onnxruntime-silicon", "onnxruntime-training", "ort-nightly", "ort-nightly-gpu",
    ),
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    # the names without a CUDA version hold nothing themselves on the package index; JetPack's tensorrt does
    "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    "onnxruntime-ep-nv-tensorrt-rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
}  # fmt: skip
# what graph runtimes pick their kernels by; x86 names of /proc/cpuinfo, then ARM's
_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Processor:
    """`cores`: those this process may use.  `features`: vector extensions, None where the system does not tell."""

    model: str
    cores: int
    features: tuple[str, ...] | None


@functools.cache
def processor() -> Processor:
    """The processor of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    told = _cpuinfo()
    flags = told.get("flags", told.get("Features"))
    features = None if flags is None else tuple(name for name in _FEATURES if name in flags.split())
    model = told.get("model name") or _board() or platform.processor() or platform.machine()
    return Processor(model, cores, features)


def installed(name: str) -> tuple[tuple[str, str], ...]:
    """(Distribution, version) of every installed wheel that brings the same package, or stands for it."""
    found = ((variant, _version(variant)) for variant in (name, *VARIANTS.get(name, ())))
    return tuple((variant, version) for variant, version in found if version)


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution, or of the variant installed in its place; None where absent."""
    return {name: next((version for _, version in installed(name)), None) for name in names}


def resident_mb() -> float | None:
    """Memory this process holds now, MB (1e6 bytes); None where the system does not tell (only Linux does)."""
    return _memory("VmRSS")


def peak_resident_mb() -> float | None:
    """The most memory this process has held, MB.

    From /proc on Linux: getrusage there counts the parent's memory before the fork as well.
    """
    if (peak := _memory("VmHWM")) is not None or sys.platform == "win32":
        return peak
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used * 1024 / 1e6


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    text = _read("/proc/cpuinfo")
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _board() -> str:
    return _read("/proc/device-tree/model").rstrip("\0")  # ARM boards name themselves here, not in /proc/cpuinfo


def _memory(field: str) -> float | None:
    found = re.search(rf"^{field}:\s+(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
