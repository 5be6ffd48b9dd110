"""The first NVIDIA GPU, asked of the driver itself: no package is needed, and the answer takes no time."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from typing import Any

from ..errors import ProviderUnavailable

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUdevice_attribute
_MAJOR, _MINOR = 75, 76


@dataclasses.dataclass(frozen=True)
class Gpu:
    """`capability`: as "8.6"."""

    name: str
    capability: str


def first_gpu() -> Gpu:
    """The GPU that CUDA counts first; raises ProviderUnavailable where there is no driver, or no GPU."""
    driver = _driver()
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        raise ProviderUnavailable(
            "no NVIDIA GPU can be used here",
            cause=f"the driver answers with CUDA error {code}" if code else "the driver counts none",
            remedy="look at: nvidia-smi; without a GPU, plans for RTX GPUs are built with: --device tensorrt-rtx",
        )
    return _read(driver)


def _driver() -> Any:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise ProviderUnavailable(
            "no NVIDIA driver is installed",
            cause=str(error),
            remedy="install the driver of the GPU; without a GPU, plans for RTX GPUs are built with: "
            "--device tensorrt-rtx",
        ) from error


def _read(driver: Any) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    return Gpu(name.value.decode(), f"{numbers[0]}.{numbers[1]}")
