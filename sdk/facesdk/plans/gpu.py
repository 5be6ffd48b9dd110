"""The GPU that plans are built for and run on, asked of the driver itself: the answer takes no time."""

from __future__ import annotations

from ..errors import ProviderUnavailable
from ..nvidia import Gpu, driver
from .library import CAPABILITIES

__all__ = ["Gpu", "first_gpu", "gpu_for"]


def first_gpu(advice: str = "without a GPU, ask for device auto") -> Gpu:
    """The GPU that CUDA counts first; raises ProviderUnavailable where there is no driver, or no GPU.

    advice  what there is to do without one.
    """
    found = driver()
    if found is None:
        raise ProviderUnavailable(
            "no NVIDIA driver is installed",
            cause="its library libcuda cannot be loaded",
            remedy=f"install the driver of the GPU, on Ubuntu: sudo ubuntu-drivers install; {advice}",
        )
    if not found.gpus:
        raise ProviderUnavailable(
            "no NVIDIA GPU can be used here",
            cause=f"the driver answers with CUDA error {found.error}" if found.error else "the driver counts none",
            remedy=f"look at: nvidia-smi; {advice}",
        )
    return found.gpus[0]


def gpu_for(device: str) -> Gpu:
    """The first GPU, where the library of that device runs on it; raises ProviderUnavailable."""
    gpu = first_gpu()
    known = CAPABILITIES.get(device)
    if known and gpu.capability not in known:
        raise ProviderUnavailable(
            f"{device} does not run on {gpu.name}",
            cause=f"it needs compute capability {', '.join(known)}; this GPU has {gpu.capability}",
            remedy="ask for device tensorrt or cuda",
        )
    return gpu
