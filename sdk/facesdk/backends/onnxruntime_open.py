"""Opening ONNX Runtime sessions: on one provider that never changes by itself, and what went wrong otherwise."""

from __future__ import annotations

import collections
import logging
import re
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, EngineUnreadable, OutOfMemory

CPU = "CPUExecutionProvider"
#: the wheel with CUDA, and NVIDIA's libraries that it loads
INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
# operators whose place decides how fast a network is; shapes are computed on the processor by intent
_COSTLY = {
    "Attention", "Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gemm", "GridSample", "LayerNormalization",
    "MatMul", "MultiHeadAttention", "NhwcConv", "Resize",
}  # fmt: skip
# what ONNX Runtime's arena, the CUDA runtime and cuBLAS say where there is no memory left
_FULL = ("Failed to allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# what the provider says where the machine is at fault, as "CUDA failure 35: driver too old ; GPU=0 ; ..."
_MACHINE = re.compile(r"\b(?:CU[A-Z_]+ failure \d+: [^;\n]*[^;\s]|cuDNN is (?:not available|unavailable)[^;\n]*)")

log = logging.getLogger("facesdk")


def session_options(threads: int | None, *, noted: bool = False) -> Any:
    """Options of a session; `noted`: for `warn_of_processor`, which provider runs which node."""
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if noted:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def open_session(path: Path, options: Any, provider: str = "", provider_options: dict[str, str] | None = None) -> Any:
    """An InferenceSession on `provider`, or on those that `options` name; raises EngineUnreadable, OutOfMemory.

    Where the provider cannot be loaded, ONNX Runtime only warns, and the session is one on the CPU.
    """
    chosen = {"providers": [provider], "provider_options": [provider_options or {}]} if provider else {}
    try:
        return ort.InferenceSession(str(path), options, **chosen, enable_fallback=0)
    except Exception as error:  # the binding raises half a dozen unrelated classes, RuntimeError among them
        raise _open_error(path, error) from error


def warn_of_processor(path: Path, session: Any) -> None:
    """Log the costly operators that a session on a GPU leaves to the processor."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
        return
    left = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == CPU]
    kinds = collections.Counter(node.op_type for part in left for node in part.get_nodes() if node.op_type in _COSTLY)
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        log.warning("%s: the processor runs %s, for which the GPU has no kernel", path.name, counts)


def machine_fault(error: BaseException) -> str:
    """What the provider says of driver, GPU or CUDA's libraries, empty where it says nothing of them."""
    found = _MACHINE.search(str(error))
    return found[0] if found else ""


def full(what: str, error: Exception) -> OutOfMemory | None:
    """The error for a want of memory, where it is one."""
    if not any(sign in str(error) for sign in _FULL):
        return None
    return OutOfMemory(
        f"{what} found no room in memory",
        cause=str(error).strip().splitlines()[-1],
        remedy="close other programs and engines that use the memory, or take a smaller batch",
    )


def broken(description: str, error: Exception) -> EngineError | None:
    """The error for a run that failed by driver, GPU or CUDA's libraries, where it did."""
    if not (fault := machine_fault(error)):
        return None
    # cuDNN is looked for when the first operator wants it; after most errors of CUDA no call succeeds any more
    again = "start the program again; where that does not help, look at: nvidia-smi"
    remedy = INSTALL if "cuDNN" in fault else again
    return EngineError(f"{description} failed to run the graph", cause=fault, remedy=remedy)


def _open_error(path: Path, error: Exception) -> EngineError:
    return full(path.name, error) or EngineUnreadable(
        f"{path.name} cannot be loaded by ONNX Runtime {ort.__version__}",
        cause=str(error).splitlines()[0],
        remedy="verify the file (facesdk models verify), or export it again",
    )
