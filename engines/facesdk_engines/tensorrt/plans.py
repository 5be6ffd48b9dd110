"""The plans of a bundle: which file each is built of, where it lies, whether it is still right."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.errors import FaceSDKError, OutputError, UsageError, one_of
from facesdk.graph import Graph
from facesdk.home import home
from facesdk.plans.digests import digest
from facesdk.plans.gpu import Gpu, first_gpu
from facesdk.plans.key import Here, Key, check, files_of, read_key, side_car, write_key
from facesdk.plans.library import MODULES, require, version
from facesdk.plans.names import plan_name
from facesdk.plans.plugin import kernel_for, plugin_library
from facesdk.plans.profiles import Profile, named, profile, said

from .build import Built, Request
from .child import build_in_child
from .options import BuildOptions
from .plugin import require as require_attention


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan on disk.  `built`: just now, and not before."""

    path: Path
    key: Key
    built: bool


@dataclasses.dataclass(frozen=True)
class _Job:
    """One engine of a bundle, in a precision that it has."""

    engine: str
    onnx: Path
    plan: Path
    options: BuildOptions
    profile: Profile
    files: Mapping[str, str]
    command: str


#: called with an engine, the share of its build that is done, and the phase under way
OnEngine = Callable[[str, float, str], None]


def build_plans(
    bundle: Bundle,
    options: BuildOptions,
    *,
    engines: Sequence[str] = (),
    folder: Path | None = None,
    profiles: Path | None = None,
    force: bool = False,
    on_progress: OnEngine = lambda engine, share, phase: None,
) -> Iterator[Plan]:
    """A plan of each engine, as soon as it lies in `folder`; one that is there and still right is not built again.

    engines   names; empty: all, and those without fp16 in fp32.     folder    the bundle's own where it is not given.
    profiles  a TOML file with tables [profiles.<engine>], for those engines in place of the bundle's own.
    Raises UsageError, BundleError, MissingDependency, ProviderUnavailable, before anything is built; then what a
    build raises.  Nothing is ever half-written; plans that were finished stay.
    """
    for name in engines:
        if name not in bundle.engine_names:
            raise one_of("engine", name, bundle.engine_names)
    gpu = builds_on(options)
    require_attention(options.attention)
    folder = folder or bundle.folder
    chosen = _chosen(bundle, options, engines)
    jobs = [_job(bundle, name, options, folder, profiles, gpu) for name, options in chosen.items()]
    if profiles and (unknown := named(profiles) - set(bundle.engine_names)):
        raise UsageError(
            f"{profiles} has profiles of {', '.join(sorted(unknown))}, which {bundle.name} has not",
            remedy=f"choose of: {', '.join(bundle.engine_names)}",
        )
    if profiles and not any(said(profiles, name) for name in chosen):
        raise UsageError(
            f"{profiles} says nothing of the engines that are built",
            cause=f"it has no table [profiles.NAME] for {', '.join(chosen)}",
            remedy="add one, or leave --profiles out",
        )
    here = Here(version(options.device))
    if gpu and options.device == "tensorrt":
        here = dataclasses.replace(here, capability=gpu.capability, gpu=gpu.name)
    return (_made(job, here, gpu, force, on_progress) for job in jobs)


def builds_on(options: BuildOptions) -> Gpu | None:
    """The GPU that is built on, None where none is needed; nothing large is loaded to find out.

    Raises MissingDependency without the library, ProviderUnavailable without a driver or GPU that is needed.
    """
    require(options.device, "building for")
    if options.device == "tensorrt-rtx" and not (options.refit or options.strip):
        return None
    if options.device == "tensorrt-rtx":
        return first_gpu("without a GPU, leave --refit and --strip out")
    return first_gpu("without a GPU, plans for RTX GPUs are built with: --device tensorrt-rtx")


# -- before the build -------------------------------------------------------------------------------------


def _chosen(bundle: Bundle, options: BuildOptions, engines: Sequence[str]) -> dict[str, BuildOptions]:
    """Options of each engine: of those that were not named, the ones without fp16 are built in fp32."""
    full = dataclasses.replace(options, precision="fp32", attention="builtin")
    chosen = {}
    for name in engines or bundle.engine_names:
        chosen[name] = options if options.precision == "fp32" or _half(bundle, name) else full
        if engines and chosen[name] is full:
            raise UsageError(
                f"engine {name} of {bundle.name} has no fp16 form",
                cause="fp16 files are derived from fp32 ones, and verified, when a bundle is exported",
                remedy="export the bundle with facesdk export --fp16, or build it with --precision fp32",
            )
    return chosen


def _half(bundle: Bundle, engine: str) -> Path | None:
    forms = bundle.forms(engine)
    return forms.get("tensorrt-fp16", forms.get("fp16"))


def _job(
    bundle: Bundle, engine: str, options: BuildOptions, folder: Path, profiles: Path | None, gpu: Gpu | None
) -> _Job:
    forms = bundle.forms(engine)
    half = _half(bundle, engine) if options.precision == "fp16" else None
    onnx = half or forms.get("tensorrt", forms["default"])
    inputs, card = Graph.read(onnx).inputs, Card.read(onnx)
    own = said(profiles, engine) if profiles else {}
    shapes = profile(engine, inputs, own or said(bundle.folder, engine), card.example_shapes)
    command = f"facesdk build {shlex.quote(str(bundle.folder))} --engine {engine} {options.arguments()}"
    command += f" --profiles {shlex.quote(str(profiles))}" if own else ""
    command += f" -o {shlex.quote(str(folder))}" if folder != bundle.folder else ""
    capability = gpu.capability if gpu else ""
    plan = folder / plan_name(
        engine, options.device, options.precision, capability=capability, hardware=options.hardware
    )
    return _Job(engine, onnx, plan, options, shapes, files_of(onnx, bundle.files), command)


def _made(job: _Job, here: Here, gpu: Gpu | None, force: bool, on_progress: OnEngine) -> Plan:
    if not force and (key := _kept(job, here)):
        return Plan(job.plan, key, built=False)
    return Plan(job.plan, _build(job, gpu, on_progress), built=True)


def _kept(job: _Job, here: Here) -> Key | None:
    """The key of a plan that lies there and need not be built again."""
    try:
        kernel = kernel_for(read_key(job.plan))
        key = check(job.plan, dataclasses.replace(here, files=job.files, kernel=kernel), whole=True)
    except FaceSDKError:  # whatever is wrong with it, building it again is the remedy
        return None
    return key if key.command == job.command and key.profile == _as_lists(job.profile) else None


# -- the build --------------------------------------------------------------------------------------------


def _build(job: _Job, gpu: Gpu | None, on_progress: OnEngine) -> Key:
    """The key of a plan, after writing both."""
    folder = job.plan.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
            cache = _timing_cache(job.options, gpu)
            request = Request(job.onnx, Path(scratch) / job.plan.name, job.options, job.profile, cache)
            built, used = build_in_child(request, lambda share, phase: on_progress(job.engine, share, phase))
            key = _key(job, gpu, built, used)
            side_car(job.plan).unlink(missing_ok=True)  # a plan beside another's key would be believed
            request.plan.replace(job.plan)
            write_key(job.plan, key)
            return key
    except FaceSDKError:
        raise
    except OSError as error:
        raise OutputError(
            f"{job.plan} cannot be written",
            cause=error.strerror or str(error),
            remedy="choose a folder that you may write to, with room for the plan: -o FOLDER",
        ) from error


def _timing_cache(options: BuildOptions, gpu: Gpu | None) -> Path | None:
    """The file of measured kernel times, by version and GPU.  TensorRT for RTX keeps none: it chooses when it runs."""
    if options.device == "tensorrt-rtx" or gpu is None:
        return None
    words = f"{version(options.device)} {gpu.name} {gpu.capability}"
    return home() / "timing" / f"{re.sub(r'[^a-z0-9.]+', '-', words.lower())}.cache"


def _key(job: _Job, gpu: Gpu | None, built: Built, used: Request) -> Key:
    rtx, ours = job.options.device == "tensorrt-rtx", job.options.attention == "plugin" and built.plugged
    return Key(
        engine=job.engine, files=job.files, builder=MODULES[job.options.device], version=built.version,
        device=job.options.device, precision=job.options.precision, hardware=job.options.hardware,
        capabilities=job.options.capabilities if rtx or gpu is None else (gpu.capability,),
        gpu=gpu.name if gpu else "", profile=_as_lists(job.profile), flags=built.flags,
        plan_size=built.plan_size, plan_sha256=built.plan_sha256, command=job.command,
        kernel=digest(plugin_library()) if ours else "", card=Card.read(job.onnx).to_properties(),
        report=_report(built, used),
    )  # fmt: skip


def _report(built: Built, used: Request) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "seconds": round(built.seconds, 2), "layers": built.layers, "peak_mb": built.peak_mb and round(built.peak_mb),
        "level": used.options.level, "workspace_mb": used.options.workspace_mb,
    }  # fmt: skip
    if built.plugged:
        facts |= {"plugin": list(built.plugged)}
    if built.attentions is None:
        return facts
    return facts | {"attention": {kind: list(names) for kind, names in dataclasses.asdict(built.attentions).items()}}


def _as_lists(shapes: Profile) -> dict[str, list[list[int]]]:
    """A profile as JSON gives it back."""
    return {name: [list(shape) for shape in three] for name, three in shapes.items()}
