"""The Python module of each TensorRT library: found without importing it, then imported; errors say what to install."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from ..errors import MissingDependency, ProviderUnavailable

#: device -> the module of its library
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
# TensorRT's own libraries are on no registry but NVIDIA's, which this package's set-up asks by itself
_INSTALL = {"tensorrt-rtx": "pip install tensorrt-rtx", "tensorrt": "pip install tensorrt-cu13"}
#: device -> compute capabilities that its library runs on, where it does not run on all that CUDA does
#: (members of ComputeCapability in tensorrt_rtx 1.7.1)
CAPABILITIES = {"tensorrt-rtx": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")}


#: ONNX Runtime's plugin that compiles for RTX when an engine is opened: distribution, module, and what installs it
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx"
PLUGIN_MODULE = PLUGIN.replace("-", "_")
PLUGIN_INSTALL = f"pip install {PLUGIN}-cu13"


def require(device: str, verb: str) -> None:
    """Raise MissingDependency where the library is not installed; nothing is loaded to find out.

    verb  what it is needed for, as "building for" or "running on".
    """
    if importlib.util.find_spec(MODULES[device]) is None:
        raise MissingDependency(
            f"{verb} {device} needs the Python package {MODULES[device]}",
            cause="it is not installed"
            + ("" if device == "tensorrt-rtx" else "; NVIDIA's index pypi.nvidia.com has it"),
            remedy=_INSTALL[device],
        )


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
