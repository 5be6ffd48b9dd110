"""The devices of TensorRT: an engine's plan where one lies there, is right and was verified; for RTX also without."""

from __future__ import annotations

import importlib.util

from ..card import Card
from ..engine import Backend
from ..errors import BundleError, MissingDependency, ModelNotFound
from ..graph import Graph
from ..plans.find import Origin, find_plan, usable_gpu
from ..plans.gpu import gpu_for
from ..plans.library import PLUGIN_INSTALL, PLUGIN_MODULE
from ..plans.profiles import Profile, profile, said
from ..plans.verification import verify
from . import Source


def open_planned(source: Source, device: str) -> Backend:
    """The backend for "tensorrt" or "tensorrt-rtx"; raises as `open_plan`.

    For "tensorrt-rtx", where there is no plan or nothing to run it with, ONNX Runtime's plugin if that is installed.
    """
    plugin = device == "tensorrt-rtx" and importlib.util.find_spec(PLUGIN_MODULE) is not None
    if plugin:
        gpu_for(device)  # without a GPU, that alone is said
    try:
        return open_plan(source, device)
    except (MissingDependency, ModelNotFound) as error:
        if plugin:
            return _open_provider(source)
        if device != "tensorrt-rtx":
            raise
        remedy = f"{error.remedy}; or, to run without a plan: {PLUGIN_INSTALL}"
        raise type(error)(error.fact, cause=error.cause, remedy=remedy) from error


def open_plan(source: Source, device: str) -> Backend:
    """The engine's plan, opened.

    Raises MissingDependency or ProviderUnavailable for what this machine lacks, ModelNotFound without a plan,
    EngineStale, EngineUnreadable or ToleranceExceeded for one that must not be used, OutOfMemory, EngineError.
    """
    gpu = usable_gpu(device)
    found = find_plan(source.path_for(device), device, source.precision, gpu, source.plans)
    from .tensorrt import TensorRt

    backend = TensorRt(found.plan, found.key, found.graph, device)
    try:
        verify(backend, found, source.reference or source.path)
    except BaseException:
        backend.close()
        raise
    return backend


def _open_provider(source: Source) -> Backend:
    from .rtx_provider import RtxProvider

    path = source.path_for("tensorrt-rtx")
    return RtxProvider(path, _profile(Origin.of(path)), source.threads)


def _profile(origin: Origin) -> Profile:
    """The sizes that plans of this engine would have; none where neither its bundle nor its card says them all."""
    table = said(origin.graph.parent, origin.engine) if origin.bundle else {}
    try:
        return profile(origin.engine, Graph.read(origin.graph).inputs, table, Card.read(origin.graph).example_shapes)
    except BundleError:
        if table:
            raise
        return {}
