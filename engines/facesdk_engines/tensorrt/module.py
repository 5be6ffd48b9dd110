"""The Python module of each library: found without importing it, then imported; errors say what to install."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from facesdk.errors import MissingDependency, ProviderUnavailable

from .gpu import Gpu, first_gpu
from .options import BuildOptions

#: device -> the module of its library
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
# TensorRT's own libraries are on no registry but NVIDIA's, which this package's set-up asks by itself
_INSTALL = {"tensorrt-rtx": "pip install tensorrt-rtx", "tensorrt": "pip install tensorrt-cu13"}


def require(options: BuildOptions) -> Gpu | None:
    """The GPU that is built on, None where none is needed; nothing large is loaded to find out.

    Raises MissingDependency without the library, ProviderUnavailable without a driver or GPU that is needed.
    """
    device = options.device
    if importlib.util.find_spec(MODULES[device]) is None:
        raise MissingDependency(
            f"building for {device} needs the Python package {MODULES[device]}",
            cause="it is not installed"
            + ("" if device == "tensorrt-rtx" else "; NVIDIA's index pypi.nvidia.com has it"),
            remedy=_INSTALL[device],
        )
    if device == "tensorrt-rtx" and not (options.refit or options.strip):
        return None
    return first_gpu()


def load(device: str) -> ModuleType:
    """The imported module; raises ProviderUnavailable where its libraries cannot be loaded."""
    try:
        return importlib.import_module(MODULES[device])
    except (ImportError, OSError) as error:
        raise ProviderUnavailable(
            f"the Python package {MODULES[device]} cannot be loaded",
            cause=str(error),
            remedy=_INSTALL[device].replace("install", "install --force-reinstall"),
        ) from error


def version(device: str) -> str:
    """The library's version."""
    return str(load(device).__version__)
