"""Fused attention with a second set of keys: a CUDA kernel where arrays are on a GPU, NumPy where they are not."""

from __future__ import annotations

from ..cuda.memory import DeviceArray
from .attention import attention
from .library import Library, cuda_available, load

__all__ = ["DeviceArray", "Library", "attention", "cuda_available", "load"]
