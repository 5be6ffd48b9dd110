"""What `facesdk doctor` finds out of GPUs: driver, cards, packages, libraries, plans.

Where there is no GPU, that is said once, only what is installed all the same is listed, and nothing large is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from .bundle import Bundle
from .cuda import runtime
from .errors import EngineStale, FaceSDKError, MissingDependency, ProviderUnavailable
from .finding import Finding
from .kernels import library as kernels
from .machine import installed, versions
from .nvidia import Driver, Gpu
from .plans import library
from .plans.key import Here, Key, check, read_key

_TOPIC = "gpu"
#: what a package is installed as, where that has another name: cuda-python only requires cuda-bindings
_INSTALLED = {"cuda-python": "cuda-bindings"}


def off(driver: Driver | None) -> tuple[str, str] | None:
    """Why GPU devices are off here, and what to do about it; None where there is a GPU."""
    if driver is None:
        remedy = "with an NVIDIA GPU: install its driver; in a container: docker run --gpus all"
        return "no NVIDIA driver: GPU devices are off", remedy
    if not driver.gpus:
        reason = f"CUDA error {driver.error}" if driver.error else "it counts none"
        return f"the driver has no GPU to use ({reason}): GPU devices are off", "nvidia-smi"
    return None


def examine_gpus(driver: Driver | None) -> Iterator[Finding]:
    """Driver, cards, and what runs on them."""
    if driver is not None:
        yield Finding(_TOPIC, "driver", "ok", str(driver))
        for index, gpu in enumerate(driver.gpus):
            fact = f"{gpu.name}, compute capability {gpu.capability}, {gpu.memory_mb / 1e3:.1f} GB"
            yield Finding(_TOPIC, f"gpu {index}", "ok", fact)
    for name in ("tensorrt", "tensorrt-rtx", library.PLUGIN):
        yield from _conflict(name)
    yield from _stack(driver.gpus[0]) if driver and driver.gpus else _idle()


def _conflict(name: str) -> Iterator[Finding]:
    """Wheels of one package for several versions of CUDA; the name without one only requires them."""
    wheels = [wheel for wheel, _ in installed(name) if wheel != name]
    if len(wheels) > 1:
        fact = f"{' and '.join(wheels)} are installed at once and overwrite each other's files"
        yield Finding(_TOPIC, name, "problem", fact, f"pip uninstall -y {' '.join(wheels)} && pip install {wheels[0]}")


def _idle() -> Iterator[Finding]:
    for name in ("cuda-python", "tensorrt", "tensorrt-rtx", library.PLUGIN):
        if version := _installed(name):
            yield Finding(_TOPIC, name, "ok", f"{version}, not tried without a GPU")


def _stack(gpu: Gpu) -> Iterator[Finding]:
    yield _tried("cuda-python", runtime.require)
    for device in _devices(gpu):
        yield _tried(device, functools.partial(_load, device))
    if "tensorrt-rtx" in _devices(gpu):
        yield _tried(library.PLUGIN, _find_provider)
    yield _tried("onnxruntime providers", _providers)
    yield _tried("attention kernels", lambda: str(kernels.load().path))


def _tried(name: str, attempt: Callable[[], str | None]) -> Finding:
    """A note with the command where the attempt fails, else what it says, else the version."""
    try:
        fact = attempt()
    except FaceSDKError as error:
        missing = isinstance(error, MissingDependency)
        return Finding(_TOPIC, name, "note", "not installed" if missing else error.cause or error.fact, error.remedy)
    return Finding(_TOPIC, name, "ok", fact or _installed(name) or "of unknown version")


def _installed(name: str) -> str | None:
    """The version of a package, None where it is not there."""
    found = _INSTALLED.get(name, name)
    return versions((found,))[found]


def _load(device: str) -> str:
    library.require(device, "running on")
    return library.version(device)


def _find_provider() -> None:
    if importlib.util.find_spec(library.PLUGIN_MODULE) is None:
        raise MissingDependency("the plugin provider is not installed", remedy=library.PLUGIN_INSTALL)


def _providers() -> str:
    try:
        import onnxruntime

        return ", ".join(onnxruntime.get_available_providers())
    except Exception as error:  # a half-overwritten wheel raises anything
        remedy = "pip install --force-reinstall onnxruntime"
        raise ProviderUnavailable("onnxruntime cannot be loaded", cause=f"{error}", remedy=remedy) from error


# -- plans ------------------------------------------------------------------------------------------------


def examine_plans(bundle: Bundle, driver: Driver | None) -> Iterator[Finding]:
    """One finding of all plans that are right, one of each other; of a bundle without, where plans could run."""
    gpu = driver.gpus[0] if driver and driver.gpus else None
    found = sorted(bundle.folder.glob("*.plan"))
    foreign = [plan for plan in found if gpu and _of_another(plan, gpu)]
    wrong = [finding for plan in found if plan not in foreign and (finding := _wrong(bundle, plan, gpu))]
    counts = {"right": len(found) - len(foreign) - len(wrong), "for other GPUs": len(foreign)}
    if fact := ", ".join(f"{count} {what}" for what, count in counts.items() if count):
        yield Finding("plans", bundle.name, "ok", fact)
    yield from wrong
    if gpu and not found and (device := next((each for each in _devices(gpu) if versions((each,))[each]), None)):
        yield Finding("plans", bundle.name, "note", "none", f"facesdk build {bundle.name} --device {device}")


def _devices(gpu: Gpu) -> list[str]:
    """The devices of plans that a GPU can be."""
    return [device for device in library.MODULES if gpu.capability in library.CAPABILITIES.get(device, gpu.capability)]


def _of_another(plan: Path, gpu: Gpu) -> bool:
    """Whether a plan's name says another compute capability: those for several GPUs lie in one folder."""
    return ".sm" in plan.name and f".sm{gpu.capability.replace('.', '')}." not in plan.name


def _wrong(bundle: Bundle, plan: Path, gpu: Gpu | None) -> Finding | None:
    """Why a plan cannot be used here, and the command that builds it again; None for one that can."""
    try:
        key = read_key(plan)
        check(plan, _here(key, bundle, gpu))
    except EngineStale as error:
        return Finding("plans", bundle.name, "note", f"{plan.name} is stale: {error.cause}", error.remedy)
    except FaceSDKError as error:
        return Finding("plans", bundle.name, "note", f"{plan.name}: {error.cause or error.fact}", error.remedy)
    return None


def _here(key: Key, bundle: Bundle, gpu: Gpu | None) -> Here:
    """What the plan meets here; what is not known without a library or GPU, or would be hashed, is taken as right."""
    version = _version(key.device, gpu) or key.version
    there = {name: digest if (bundle.folder / name).is_file() else "missing" for name, digest in key.files.items()}
    files = {**there, **bundle.files}
    return Here(version, gpu.capability if gpu else "", files, gpu=gpu.name if gpu else "")


def _version(device: str, gpu: Gpu | None) -> str | None:
    """The library's version: as it says itself where it is loaded anyway, else as its package says."""
    if device not in library.MODULES:
        return None
    if gpu:
        with contextlib.suppress(FaceSDKError):  # told of elsewhere
            return library.version(device)
    return versions((device,))[device]
