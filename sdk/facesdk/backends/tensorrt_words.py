"""What TensorRT says: it answers None or False, and gives the reason to a logger or to an error recorder."""

from __future__ import annotations

import functools
from collections import deque
from types import ModuleType
from typing import Any

from ..errors import EngineError, FaceSDKError, OutOfMemory, ProviderUnavailable

# as many as are kept: nobody reads more, and some errors come with every call
_KEPT = 20
#: what TensorRT says where there is no memory left
OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "insufficient memory", "failed to allocate")
_NO_DRIVER = ("cudaerror 35:", "cudaerror 100:", "driver version is insufficient", "no cuda-capable device")


@functools.cache
def logger(trt: ModuleType) -> Any:
    """A logger that keeps the errors in `words`, and nothing else; one for all: TensorRT stays with its first."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.words: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.words.append(message)

    return Logger()


def recorder(trt: ModuleType) -> Any:
    """A recorder that keeps the errors of one object in `words`; without it those of all threads come together."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.words: deque[str] = deque(maxlen=_KEPT)
            self._codes: deque[Any] = deque(maxlen=_KEPT)

        def report_error(self, code: Any, description: str) -> bool:
            self._codes.append(code)
            self.words.append(description)
            return True

        def get_num_errors(self) -> int:  # what TensorRT looks up
            return len(self.words)

        def num_errors(self) -> int:  # what the class that it derives from offers
            return len(self.words)

        def get_error_code(self, index: int) -> Any:
            return self._codes[index]

        def get_error_desc(self, index: int) -> str:
            return self.words[index]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self._codes.clear()
            self.words.clear()

    return Recorder()


def failure(fact: str, words: deque[str], remedy: str, kind: type[EngineError] = EngineError) -> FaceSDKError:
    """The error for a call that failed, and its words are used up: OutOfMemory or ProviderUnavailable, else `kind`."""
    said = [" ".join(text.split()) for text in words]
    words.clear()
    for signs, told, advice in (
        (OF_MEMORY, OutOfMemory, "close other engines and programs on the GPU: nvidia-smi"),
        (_NO_DRIVER, ProviderUnavailable, "install or update the GPU's driver: nvidia-smi"),
    ):
        if cause := next((text for text in said if any(sign in text.lower() for sign in signs)), ""):
            return told(fact, cause=cause, remedy=advice)
    # the first complaint is the reason, later ones are what came of it
    return kind(fact, cause=said[0] if said else "TensorRT gives no reason", remedy=remedy)
