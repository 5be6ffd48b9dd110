"""Which plans of an engine Triton can load: those of TensorRT, for graphs whose tensors all have axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from facesdk.bundle import Bundle
from facesdk.errors import UsageError
from facesdk.graph import Graph
from facesdk.plans.key import Here, check, files_of, read_key

from .models import Plan

Found = tuple[tuple[Plan, ...], str]


def find_plans(bundle: Bundle, engine: str, precision: str, folders: Sequence[Path]) -> Found:
    """The plans of an engine in a precision, and why there is none where some lie there.

    Raises EngineStale for a plan of another file, EngineUnreadable for a damaged one, UsageError for one that has no
    weights, or where two are for one kind of GPU.
    """
    onnx = built_of(bundle, engine, precision)
    files = files_of(onnx, bundle.files)
    plans: dict[str, Plan] = {}
    for path in _candidates(engine, folders):
        key = read_key(path)
        if (key.engine, key.device, key.precision) != (engine, "tensorrt", precision):
            continue
        check(path, Here(key.version, files=files, kernel=key.kernel), whole=True)
        if "STRIP_PLAN" in key.flags:
            raise UsageError(
                f"{path} has no weights", cause="Triton refits no plans", remedy=_without_strip(key.command)
            )
        file = "model.plan" if key.hardware == "ampere" else f"model_sm{key.capabilities[0].replace('.', '')}.plan"
        if file in plans:
            raise UsageError(f"{plans[file].path} and {path} are for the same GPUs", remedy="leave one folder out")
        plans[file] = Plan(path, key, file)
    if plans and (scalars := _without_axes(Graph.read(onnx))):
        return (), f"Triton's TensorRT backend takes no tensors without axes: {', '.join(scalars)}"
    return tuple(plans[file] for file in sorted(plans)), "" if plans else _rtx(engine, precision, folders)


def check_versions(plans: Sequence[Plan]) -> None:
    """Raise UsageError where no single version of TensorRT loads all plans: a server has one."""
    versions = {plan.key.version for plan in plans if "VERSION_COMPATIBLE" not in plan.key.flags}
    if len(versions) > 1:
        raise UsageError(
            f"the plans are of TensorRT {', '.join(sorted(versions))}",
            cause="a server has one version, and loads plans of no other",
            remedy="build them again with the server's version, or with facesdk build --version-compatible",
        )


def built_of(bundle: Bundle, engine: str, precision: str) -> Path:
    """The file that `facesdk build` takes for a precision that the engine has."""
    forms = bundle.forms(engine)
    if precision == "fp32":
        return forms.get("tensorrt", forms["default"])
    return forms.get("tensorrt-fp16", forms["fp16"])


def _candidates(engine: str, folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*.tensorrt.*.plan")) if _of(engine, path)]


def _rtx(engine: str, precision: str, folders: Sequence[Path]) -> str:
    """What to say where there are plans of the other library alone."""
    there = (path for folder in folders for path in folder.glob(f"*.tensorrt-rtx.{precision}.plan"))
    if any(_of(engine, path) for path in there):
        return "Triton has no backend for plans of TensorRT for RTX; build with: --device tensorrt"
    return ""


def _of(engine: str, path: Path) -> bool:
    return path.name.split(".tensorrt", 1)[0] == engine


def _without_axes(graph: Graph) -> list[str]:
    return [value.name for value in (*graph.inputs, *graph.outputs) if not value.shape]


def _without_strip(command: str) -> str:
    return command.replace(" --strip", "")
