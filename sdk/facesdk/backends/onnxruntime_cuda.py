"""ONNX Runtime's CUDA provider: whether it can be used here, what is missing, and sessions on it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, EngineUnreadable, ProviderUnavailable
from ..machine import installed
from ..plans.gpu import first_gpu
from .onnxruntime_open import INSTALL, machine_fault, open_session, session_options, warn_of_processor

PROVIDER = "CUDAExecutionProvider"
# ONNX Runtime's documentation of the CUDA provider: EXHAUSTIVE, the default, searches anew at every new shape; TF32, on
# by default, rounds factors to 10 bits of mantissa, which fp32 is not; the default arena doubles at every extension
_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested",
}  # fmt: skip
#: Whether graphs are captured where nobody says.  A capture breaks where an operator allocates or synchronises
#: (onnxruntime issues 14942, 15002; frigate pull request 24192), breaks other threads' calls of CUDA, being one of
#: global mode, and cannot be recovered from: destroying the session may then end the process (onnxruntime pull
#: request 32081).  To be turned on for what was seen to run.
GRAPH = False
WHY_PLAIN = "ONNX Runtime captures CUDA graphs only where that is asked for: OnnxRuntime(..., graph=True)"
_DRIVER = "update the driver of the GPU, or install an onnxruntime-gpu for the CUDA that nvidia-smi names"

log = logging.getLogger("facesdk")


def require() -> None:
    """Raise ProviderUnavailable, at once, without driver or GPU, or where the wheel is one for processors."""
    problems = [problem for problem in (_driver_problem(), _wheel_problem()) if problem]
    if problems:
        raise _unavailable("; ".join(cause for cause, _ in problems), "; then ".join(fix for _, fix in problems))


def open_plain(path: Path, threads: int | None) -> Any:
    """A session on the GPU; raises ProviderUnavailable where ONNX Runtime would take the processor instead."""
    missing = _preload()
    try:
        session = open_session(path, session_options(threads, noted=True), PROVIDER, _OPTIONS)
    except EngineUnreadable as error:  # it is raised, not fallen back from, where the driver is too old for the wheel
        if not (fault := machine_fault(error.__cause__ or error)):
            raise
        raise _unavailable(fault, _DRIVER if "driver" in fault else INSTALL) from error
    if session.get_providers()[0] != PROVIDER:
        reason = missing or _loader_message() or "the reason is in ONNX Runtime's own warning"
        raise _unavailable(f"ONNX Runtime fell back to {session.get_providers()[0]}: {reason}", INSTALL)
    warn_of_processor(path, session)
    return session


def open_for_graphs(path: Path, threads: int | None) -> Any:
    """A session that can capture CUDA graphs, or None, with a logged reason, where the graph does not allow it."""
    _preload()
    try:
        session = open_session(path, session_options(threads), PROVIDER, {**_OPTIONS, "enable_cuda_graph": "1"})
    except EngineError as error:
        log.info("plain launches: ONNX Runtime allows no CUDA graph: %s", error.cause or error.fact)
        return None
    return session if session.get_providers()[0] == PROVIDER else None


def _driver_problem() -> tuple[str, str] | None:
    try:
        first_gpu()
    except ProviderUnavailable as error:
        return f"{error.fact}: {error.cause}", error.remedy
    return None


def _wheel_problem() -> tuple[str, str] | None:
    if PROVIDER in ort.get_available_providers():
        return None
    wheels = [name for name, _ in installed("onnxruntime")] or ["onnxruntime"]
    swap = f"pip uninstall -y {' '.join(wheels)} && {INSTALL}"
    if len(wheels) > 1:
        return f"{' and '.join(wheels)} are installed at once and overwrite each other's files", swap
    return f"this onnxruntime {ort.__version__} was built without CUDA", swap


@functools.cache
def _preload() -> str:
    """What could not be loaded of CUDA's libraries, those of pip's wheels first; empty where all could."""
    if not hasattr(ort, "preload_dlls"):  # came with ONNX Runtime 1.21
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # it prints, also where a program's output is JSON
        ort.preload_dlls()
    failures = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
    return "; ".join(line.partition(": ")[2] or line for line in failures)


def _loader_message() -> str:
    """What the system's loader says of the provider's library: the name of the first one that is missing."""
    folder, name = Path(ort.__file__).parent / "capi", "onnxruntime_providers_{}"
    pattern = f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so"
    try:
        for part in ("shared", "cuda"):
            ctypes.CDLL(str(folder / pattern.format(part)), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return ""


def _unavailable(cause: str, remedy: str) -> ProviderUnavailable:
    return ProviderUnavailable(
        "device 'cuda' cannot be used here", cause=cause, remedy=f"{remedy}; then check with: facesdk doctor"
    )
