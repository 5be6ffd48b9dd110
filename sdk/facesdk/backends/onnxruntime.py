"""ONNX Runtime: the CPU reference of every engine, and CUDA where its wheel and driver are there."""

from __future__ import annotations

import functools
from pathlib import Path

import onnxruntime as ort

from . import onnxruntime_cuda as cuda
from .onnxruntime_open import CPU, open_session, session_options
from .onnxruntime_session import SessionBackend


class OnnxRuntime(SessionBackend):
    """An ONNX file on "cpu" or "cuda".  Raises ProviderUnavailable, EngineUnreadable, OutOfMemory.

    graph  on cuda: capture `prepare` and `scan` as CUDA graphs; onnxruntime_cuda.GRAPH says why not by default.
    """

    def __init__(self, path: Path, device: str, threads: int | None, *, graph: bool = cuda.GRAPH) -> None:
        description = f"ONNX Runtime {ort.__version__} {cuda.PROVIDER if device == 'cuda' else CPU}"
        if device != "cuda":
            session = open_session(path, session_options(threads), CPU)
            super().__init__(session, device, description, memory="cpu")
            return
        cuda.require()
        plain = functools.partial(cuda.open_plain, path, threads)
        session = cuda.open_for_graphs(path, threads) if graph else None
        if session is None:
            super().__init__(plain(), device, description, memory="cuda", launch=cuda.WHY_PLAIN)
        else:
            super().__init__(session, device, description, memory="cuda", plain=plain)
