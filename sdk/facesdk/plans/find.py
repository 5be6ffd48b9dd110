"""The plan of an engine for the GPU that is here: found by its name, compared with what it was built of."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ..bundle import MANIFEST, Bundle
from ..errors import EngineStale, FaceSDKError, MissingDependency, ModelNotFound, ProviderUnavailable
from .digests import digest
from .gpu import Gpu, gpu_for
from .key import Here, Key, check, read_key
from .library import require, version
from .names import plan_names
from .plugin import kernel_for


@dataclasses.dataclass(frozen=True)
class Found:
    """A plan that may be loaded.  `graph`: the ONNX file that it was built of.   `version`: of the library here."""

    plan: Path
    key: Key
    graph: Path
    gpu: Gpu
    version: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """An engine's file as its bundle knows it; a file outside of bundles has no `bundle`."""

    graph: Path
    engine: str
    bundle: Bundle | None

    @classmethod
    def of(cls, graph: Path) -> Origin:
        """What the `bundle.toml` beside a file says of it."""
        name = graph.name.partition(".")[0]
        if not (graph.parent / MANIFEST).is_file():
            return cls(graph, name, None)
        bundle = Bundle(graph.parent)
        named = (each for each in bundle.engine_names if graph in bundle.forms(each).values())
        return cls(graph, next(named, name), bundle)

    def digests(self, key: Key) -> dict[str, str]:
        """sha256 of the files that a plan was built of, as the bundle pins them, else of what lies here."""
        pinned = self.bundle.files if self.bundle else {}
        paths = {name: self.graph.with_name(name) for name in key.files}
        return {
            name: pinned.get(name) or (digest(path) if path.is_file() else "missing") for name, path in paths.items()
        }


def usable_gpu(device: str) -> Gpu:
    """The GPU on which plans for `device` run here; nothing large is loaded to find out.

    Raises MissingDependency or ProviderUnavailable, naming everything that is missing at once.
    """
    from ..cuda import runtime

    needed = functools.partial(require, device, "running on"), runtime.bindings, functools.partial(gpu_for, device)
    if missing := [error for each in needed if (error := _refusal(each))]:
        raise _all_of(device, missing)
    runtime.require()
    return gpu_for(device)


def find_plan(graph: Path, device: str, precision: str, gpu: Gpu, folder: Path | None = None) -> Found:
    """The plan of the engine whose ONNX file, in the form for the device, is `graph`.

    folder  of the plans, by default that of the file.
    Raises ModelNotFound where there is none, EngineUnreadable for a damaged one, EngineStale for one of other files,
    another version or another GPU.  Files that a bundle pins are not read; others are, when they are new.
    """
    origin = Origin.of(graph)
    plan = _named(origin, device, precision, gpu, folder)
    key = read_key(plan)
    if graph.name not in key.files:
        raise EngineStale(
            f"{plan.name} was built for something else",
            cause=f"it was built of {', '.join(key.files)}; the file for {device} is {graph.name} now",
            remedy=key.command,
        )
    here = Here(version(device), gpu.capability, origin.digests(key), kernel_for(key), gpu.name)
    return Found(plan, check(plan, here), graph, gpu, here.version)


def _named(origin: Origin, device: str, precision: str, gpu: Gpu, folder: Path | None) -> Path:
    names = plan_names(origin.engine, device, precision, gpu.capability)
    paths = [(folder or origin.graph.parent) / name for name in names]
    if found := next((path for path in paths if path.is_file()), None):
        return found
    raise ModelNotFound(
        f"{origin.engine} has no plan for {device} in {precision}",
        cause=f"{paths[0]} does not exist",
        remedy=_command(origin, device, precision, gpu, folder),
    )


def _command(origin: Origin, device: str, precision: str, gpu: Gpu, folder: Path | None) -> str:
    bundle = shlex.quote(str(origin.graph.parent)) if origin.bundle else "BUNDLE"
    words = f"facesdk build {bundle} --engine {origin.engine} --device {device} --precision {precision}"
    words += f" --gpus {gpu.capability}" if device == "tensorrt-rtx" else ""
    words += f" -o {shlex.quote(str(folder))}" if folder else ""
    return words if origin.bundle else f"plans are built of bundles: {words}"


def _refusal(check: Callable[[], object]) -> FaceSDKError | None:
    try:
        check()
    except (MissingDependency, ProviderUnavailable) as error:
        return error
    return None


def _all_of(device: str, missing: Sequence[FaceSDKError]) -> FaceSDKError:
    """One error for all that is missing: that there is no GPU, which nobody can install, decides its kind."""
    if len(missing) == 1:
        return missing[0]
    kind = next((type(each) for each in missing if isinstance(each, ProviderUnavailable)), MissingDependency)
    return kind(
        f"device {device!r} cannot be used here",
        cause="; ".join(each.fact for each in missing),
        remedy="; ".join(each.remedy for each in missing),
    )
