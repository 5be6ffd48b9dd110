"""One ONNX file becomes one plan, in this process: parsed, strongly typed, with a profile."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from facesdk.backends.tensorrt_words import OF_MEMORY
from facesdk.errors import EngineError, EngineUnreadable, ProviderUnavailable, UnsupportedOperator
from facesdk.files import sha256, write_bytes
from facesdk.machine import peak_resident_mb
from facesdk.plans.library import MODULES, load
from facesdk.plans.profiles import Profile

from . import plugin
from .attention import Attentions, attentions, is_layer_list, layers_of_inspector, layers_of_log, report
from .options import BuildOptions
from .progress import OnProgress, monitor

_HARDWARE = {"this": "NONE", "capability": "SAME_COMPUTE_CAPABILITY", "ampere": "AMPERE_PLUS"}
# from TensorRT 10.10 on: a run takes the memory of its shapes, not that of the profile's largest
_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to build, and where to; all of it can be sent to another process.

    timing_cache  a file that is read where it exists, and written; None for builders that keep no times.
    """

    onnx: Path
    plan: Path
    options: BuildOptions
    profile: Profile
    timing_cache: Path | None = None


@dataclasses.dataclass(frozen=True)
class Built:
    """Facts of a plan.

    layers      of the network, before fusion.   attentions  None where nothing is known of the plan's layers.
    plugged     names of the nodes that our kernel computes.
    """

    version: str
    flags: tuple[str, ...]
    plan_size: int
    plan_sha256: str
    seconds: float
    peak_mb: float | None
    layers: int
    attentions: Attentions | None
    plugged: tuple[str, ...] = ()


def build(request: Request, on_progress: OnProgress) -> Built:
    """Facts of the plan, after writing it.

    Raises ProviderUnavailable, UnsupportedOperator (with the node's name), EngineUnreadable, EngineError, MemoryError.
    """
    trt = load(request.options.device)
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # a constructor that gives nothing, without a reason
        raise ProviderUnavailable(
            f"{MODULES[request.options.device]} cannot make a builder",
            cause="no CUDA driver or GPU that it can use",
            remedy="look at: nvidia-smi",
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    plugged = _parse(trt, builder, trt.OnnxParser(network, log), request)
    softmaxes = attentions(network, trt)
    config, flags = _config(trt, builder, request, on_progress)
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if plan is None:
        raise _unbuilt(request.onnx, log.errors)
    request.plan.write_bytes(plan)
    if request.timing_cache is not None:
        write_bytes(request.timing_cache, bytes(config.get_timing_cache().serialize()))
    layers = layers_of_log(log.layers) if log.layers else _inspected(trt, log, plan)
    found = report(softmaxes, layers) if layers else None
    size, digest = request.plan.stat().st_size, sha256(request.plan)
    peak = peak_resident_mb()
    return Built(str(trt.__version__), flags, size, digest, seconds, peak, network.num_layers, found, plugged)


def _parse(trt: ModuleType, builder: Any, parser: Any, request: Request) -> tuple[str, ...]:
    """Names of the nodes that became plugins, after reading the file into the parser's network."""
    path, kind = os.fspath(request.onnx), request.options.attention
    if kind == "builtin":
        offered, parsed = None, parser.parse_from_file(path)
    else:
        offered = plugin.offer(request.onnx, kind)
        if offered.nodes:
            plugin.register(trt, builder, kind)
        parsed = parser.parse(offered.model, path)
    if not parsed:
        raise _unparsed(parser, request.onnx)
    return offered.nodes if offered else ()


# -- settings ---------------------------------------------------------------------------------------------


def _config(trt: ModuleType, builder: Any, request: Request, on_progress: OnProgress) -> tuple[Any, tuple[str, ...]]:
    """The builder's settings, and the names of the flags among them: their numbers differ between versions."""
    options, config = request.options, builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the plan's layers name their ONNX nodes
    config.builder_optimization_level = options.level
    config.progress_monitor = monitor(trt, on_progress)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 1_000_000)
    flags = _flags(options)
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.PreviewFeature, _RESIZE):
        config.set_preview_feature(getattr(trt.PreviewFeature, _RESIZE), True)
    if options.device == "tensorrt-rtx":
        _set_capabilities(trt, config, options.capabilities)
    elif options.hardware != "this":
        config.hardware_compatibility_level = _hardware(trt, _HARDWARE[options.hardware])
    if request.profile:
        _add_profile(builder, config, request)
    if request.timing_cache is not None:
        _use_timing_cache(config, request.timing_cache)
    return config, flags


def _flags(options: BuildOptions) -> tuple[str, ...]:
    asked = {
        "TF32": options.tf32,
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refit and not options.strip,
        "STRIP_PLAN": options.strip,
        "REFIT_IDENTICAL": options.strip,
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def _hardware(trt: ModuleType, name: str) -> Any:
    if not hasattr(trt.HardwareCompatibilityLevel, name):
        raise EngineError(
            f"TensorRT {trt.__version__} has no hardware level {name}",
            cause="SAME_COMPUTE_CAPABILITY came with 10.9",
            remedy="update TensorRT, or build with --hardware this",
        )
    return getattr(trt.HardwareCompatibilityLevel, name)


def _set_capabilities(trt: ModuleType, config: Any, capabilities: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        known = getattr(trt.ComputeCapability, name, None)
        if known is None or not config.set_compute_capability(known, index):
            raise EngineError(
                f"TensorRT for RTX {trt.__version__} does not build for compute capability {capability}",
                cause=f"it knows {', '.join(_capabilities(trt))}",
                remedy="name others: --gpus",
            )


def _capabilities(trt: ModuleType) -> list[str]:
    names = [name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in names]


def _add_profile(builder: Any, config: Any, request: Request) -> None:
    profile = builder.create_optimization_profile()
    for name, (lowest, best, highest) in request.profile.items():
        profile.set_shape(name, lowest, best, highest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT refuses the profile of {request.onnx.name}",
            cause=str(request.profile),
            remedy="check [profiles.*] in bundle.toml",
        )


def _use_timing_cache(config: Any, path: Path) -> None:
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), False):  # of another GPU or version
        config.set_timing_cache(config.create_timing_cache(b""), False)


# -- what the builder says --------------------------------------------------------------------------------


def _log(trt: ModuleType) -> Any:
    """A logger that keeps the errors, and the message that lists the plan's layers."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.VERBOSE and is_layer_list(message):
                self.layers = message

    return Log()


def _inspected(trt: ModuleType, log: Any, plan: Any) -> list[Any]:
    """The plan's layers by its inspector; none where the plan cannot be loaded here."""
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return []
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_of_inspector(text)


def _unparsed(parser: Any, path: Path) -> Exception:
    """The error for a graph that the parser does not take: its first complaint that names a node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    named = next((error for error in errors if error.node_operator()), None)
    if named is None:
        cause = "; ".join(str(error.desc()).strip() for error in errors) or "the parser gives no reason"
        return EngineUnreadable(f"TensorRT cannot read {path.name}", cause=cause, remedy="export the engine again")
    return UnsupportedOperator(
        f"{path.name}: TensorRT cannot take node {named.node_name()} ({named.node_operator()})",
        cause=" ".join(str(named.desc()).split()),
        remedy="write the engine in a form for TensorRT, [engines.<name>] tensorrt = FILE, or run it on device cuda",
    )


def _unbuilt(path: Path, errors: list[str]) -> Exception:
    cause = " ".join(errors[-1].split()) if errors else "the builder gives no reason"
    if any(words in text.lower() for text in errors for words in OF_MEMORY):
        return MemoryError(cause)
    remedy = "give more --workspace-mb" if "workspace" in cause else "build with --level 2, or another profile"
    return EngineError(f"TensorRT cannot build {path.name}", cause=cause, remedy=remedy)
