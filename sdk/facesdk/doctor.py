"""The examination behind `facesdk doctor`: backends tried, versions, conflicts, and the command that fixes each."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from .doctor_gpu import examine_gpus, examine_plans, off
from .engine import GPUS, Device, Engine, Precision
from .errors import FaceSDKError, ModelNotFound
from .finding import Finding, State
from .home import home, offline
from .machine import installed, processor, versions
from .nvidia import Driver, driver
from .plans.library import MODULES

_ONE_NODE = Path(__file__).parent / "data" / "one_node.onnx"
# distribution -> the package that it brings
_REQUIRED = {
    "facesdk": "facesdk", "numpy": "numpy", "onnxruntime": "onnxruntime", "opencv-python-headless": "cv2",
    "pillow": "PIL", "filelock": "filelock", "tqdm": "tqdm",
}  # fmt: skip
_OPTIONAL = ("openvino", "onnx")


def examine() -> tuple[Finding, ...]:
    """Everything found out, in the order in which it is best read; takes about a second."""
    gpus = driver()
    return (*_system(), *_packages(), *examine_gpus(gpus), *_backends(gpus), *_places(), *_bundles(gpus))


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether the CPU backend works and nothing is in conflict."""
    return all(finding.state != "problem" for finding in findings)


def _system() -> Iterator[Finding]:
    cpu = processor()
    features = "extensions unknown" if cpu.features is None else " ".join(cpu.features) or "no vector extensions"
    yield Finding("system", "python", "ok", f"{platform.python_version()} {sys.implementation.name}")
    yield Finding("system", "platform", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("system", "processor", "ok", f"{cpu.model}, {cpu.cores} cores")
    yield Finding("system", "extensions", "ok", features)


def _packages() -> Iterator[Finding]:
    for name, module in _REQUIRED.items():
        wheels = installed(name)
        fact = ", ".join(version if wheel == name else f"{version} ({wheel})" for wheel, version in wheels)
        if len(wheels) > 1:
            yield _conflict(name, [wheel for wheel, _ in wheels])
        elif wheels:
            yield Finding("packages", name, "ok", fact)
        elif importlib.util.find_spec(module):  # built by hand, or the system's own
            yield Finding("packages", name, "ok", f"{module}, of unknown version")
        else:
            yield Finding(
                "packages",
                name,
                "problem",
                "not installed",
                "pip install -e . in a clone" if name == "facesdk" else f"pip install {name}",
            )
    for name, version in versions(_OPTIONAL).items():
        remedy = "" if version else f"pip install {name}"
        yield Finding("packages", name, "ok" if version else "note", version or "not installed (optional)", remedy)


def _conflict(name: str, wheels: Sequence[str]) -> Finding:
    # an ONNX Runtime with CUDA was installed on purpose; of OpenCV the headless one suffices
    keep = next((wheel for wheel in wheels if wheel.endswith("-gpu")), name)
    fact = f"{' and '.join(wheels)} are installed at once and overwrite each other's files"
    return Finding("packages", name, "problem", fact, f"pip uninstall -y {' '.join(wheels)} && pip install {keep}")


def _backends(gpus: Driver | None) -> Iterator[Finding]:
    reason = off(gpus)
    for device in get_args(Device)[1:]:  # the first is "auto", which is one of the others
        if reason and device in GPUS:
            yield Finding("backends", device, "note", *reason)
        else:
            yield _try(device, "fp32")
        if device == "openvino":
            yield _try(device, "bf16")


def _try(device: Device, precision: Precision) -> Finding:
    subject = device if precision == "fp32" else f"{device} {precision}"
    failed: State = "problem" if device == "cpu" else "note"
    x = np.arange(4, dtype=np.float32)
    try:
        with Engine.open(_ONE_NODE, device, precision=precision) as engine:
            y, description = engine(x=x)["y"], engine.description
    except FaceSDKError as error:
        if device in MODULES and isinstance(error, ModelNotFound):  # all is there but a plan of the one node
            return Finding("backends", subject, "ok", "runs the plans that facesdk build makes")
        return Finding("backends", subject, failed, error.cause or error.fact, error.remedy)
    except Exception as error:  # a half-overwritten wheel raises anything; to report it is what this is for
        fact = f"{type(error).__name__}: {error}"
        return Finding("backends", subject, failed, fact, "pip install --force-reinstall onnxruntime")
    if not np.array_equal(y, x + x):
        return Finding("backends", subject, "problem", f"{description} computes x + x wrongly: {y}", "report it")
    return Finding("backends", subject, "ok", description)


def _places() -> Iterator[Finding]:
    folder = home()
    chosen = "FACESDK_HOME" if os.environ.get("FACESDK_HOME") else "default"
    reason = _unwritable(folder)
    if reason:
        remedy = "export FACESDK_HOME=/a/folder/that/you/may/write"
        yield Finding("models", "home", "note", f"{folder} ({chosen}) cannot be written: {reason}", remedy)
    else:
        yield Finding("models", "home", "ok", f"{folder} ({chosen})")
    if offline():
        yield Finding(
            "models", "network", "note", "FACESDK_OFFLINE is set: nothing is downloaded", "unset FACESDK_OFFLINE"
        )


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there, else empty; leaves nothing behind."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _bundles(gpus: Driver | None) -> Iterator[Finding]:
    from .store import Store

    store = Store()
    try:
        entries = store.list()
    except FaceSDKError as error:
        yield Finding("models", "store", "note", str(error.fact), error.remedy)
        return
    for entry in entries:
        pull = f"facesdk models pull {entry.name}"
        if not entry.installed:
            yield Finding("models", entry.name, "note", "not installed", pull)
        elif entry.problem:
            again = f"{pull} --force" if entry.name in store.models else "facesdk models add PATH"
            yield Finding("models", entry.name, "note", entry.problem, again)
        else:
            yield Finding("models", entry.name, "ok", f"{entry.size / 1e6:.1f} MB, licence {entry.licence}")
    for entry in entries:
        if entry.path and not entry.problem:
            yield from examine_plans(store.open(entry.name), gpus)
