"""What a measurement sees of a GPU: how the process waits for it, the memory in use, what the backend remarks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from .engine import GPUS
from .errors import MissingDependency, ProviderUnavailable


def wait_by_spinning() -> bool:
    """Whether this process waits for the GPU by spinning from now on; to be called before it first uses the GPU."""
    from .cuda import runtime

    try:
        cuda = runtime.bindings()
        runtime.called(cuda.cudaSetDeviceFlags(cuda.cudaDeviceScheduleSpin))
    except (MissingDependency, ProviderUnavailable):  # opening reports a missing GPU; ONNX Runtime needs no cuda-python
        return False
    return True


def used_mb(device: str) -> float | None:
    """Memory in use on the GPU, by all processes; None on processors, and where nobody tells."""
    if device not in GPUS:
        return None
    from .cuda import runtime

    try:
        free, total = runtime.memory_mb()
    except (MissingDependency, ProviderUnavailable):
        return None
    return total - free


@contextlib.contextmanager
def remarks(level: int) -> Iterator[dict[str, None]]:
    """What FaceSDK logs meanwhile, from `level` on, each once: why there is no CUDA graph, what runs elsewhere."""
    log, found = logging.getLogger("facesdk"), _Remarks(level)
    before = log.level
    log.addHandler(found)
    log.setLevel(min(level, log.getEffectiveLevel()))
    try:
        yield found.texts
    finally:
        log.removeHandler(found)
        log.setLevel(before)


class _Remarks(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.texts[record.getMessage()] = None
