"""The attention kernel as a TensorRT plugin: a library beside the kernels' own, which plans built with it call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import MissingDependency, ProviderUnavailable
from ..kernels import library
from .digests import digest
from .key import Key

#: operator, version and namespace by which TensorRT knows it
NAME = ("FusedAttention", "1", "facesdk")
BUILD = "cmake --preset all -D FACESDK_TENSORRT=ON -D TENSORRT_ROOT=FOLDER && cmake --build build"
_FILE = "facesdk_tensorrt.dll" if sys.platform == "win32" else "libfacesdk_tensorrt.so"


def plugin_library() -> Path:
    """The library of the plugin; raises MissingDependency where it is not built."""
    try:
        path = library.find().with_name(_FILE)
    except MissingDependency as error:
        raise MissingDependency("the attention plugin is not built", cause=error.fact, remedy=BUILD) from error
    if not path.is_file():
        raise MissingDependency("the attention plugin is not built", cause=f"{path} does not exist", remedy=BUILD)
    return path


def kernel_for(key: Key) -> str:
    """sha256 of the library here that a plan is to call; empty where it calls none, or there is none."""
    if not key.kernel:
        return ""
    try:
        return digest(plugin_library())
    except MissingDependency:
        return ""


def register(trt: ModuleType, owner: Any) -> None:
    """Make the plugin known to a Builder or Runtime of TensorRT.

    Raises MissingDependency, and ProviderUnavailable where TensorRT cannot load the library.
    """
    path, registry = plugin_library(), owner.get_plugin_registry()
    registry.load_library(os.fspath(path))
    if registry.get_creator(*NAME) is None:
        raise ProviderUnavailable(
            f"TensorRT {trt.__version__} cannot load {path}", cause="it finds no plugin in it", remedy=BUILD
        )
