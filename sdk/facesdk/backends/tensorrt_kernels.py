"""The kernels that TensorRT-RTX compiles at a plan's first runs, kept in a file: the next start need not compile."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import write_bytes
from ..home import home
from ..plans import gpu
from ..plans.key import Key

log = logging.getLogger("facesdk")


def kernels_file(plan: Path, key: Key) -> Path:
    """Where the kernels of a plan on this GPU lie."""
    facts = (key.plan_sha256, gpu.first_gpu().name, key.version)
    return home() / "rtx-cache" / f"{plan.stem}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.kernels"


class Kernels:
    """`cache`: what contexts compile into, a trt.IRuntimeCache.  It begins with what the file holds, where that fits.

    The library itself finds out what does not: another version, GPU or driver, damaged bytes.
    """

    def __init__(self, cache: Any, path: Path) -> None:
        self.cache, self._path = cache, path
        self._kept, self._lock = 0, threading.Lock()
        try:
            data = path.read_bytes()
        except OSError:
            return
        if data and cache.deserialize(data):
            self._kept = len(data)
        else:
            log.info("kernels are compiled anew: those in %s are damaged, or for another driver", path)

    def keep(self) -> None:
        """Write the file, where more was compiled since; the log says what hinders it."""
        with self._lock:
            data = bytes(self.cache.serialize() or b"")
            if len(data) in (0, self._kept):
                return
            self._kept = len(data)
            try:
                write_bytes(self._path, data)
            except OutputError as error:
                log.warning("kernels are compiled again at every start: %s: %s", error.fact, error.cause)
