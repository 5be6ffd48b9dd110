"""Writing in a shared folder: one process at a time, and clear words where writing is impossible."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from .errors import FaceSDKError, OutputError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make `folder`; the block's OSErrors become OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except FaceSDKError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written",
            cause=str(error),
            remedy="free space there, or set FACESDK_HOME to a folder that you may write to",
        ) from error


@contextlib.contextmanager
def locked(path: Path, what: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path` during the block; a log line says when another process has to be waited for.

    The operating system frees the lock of a process that dies.
    Raises OutputError after `timeout_s`, or where the file cannot be made.
    """
    from filelock import FileLock, Timeout  # 30 ms: not for those who only open a bundle

    lock = FileLock(path)
    with writing(path.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("waiting for another process that is busy with %s", what)
            try:
                lock.acquire(timeout=timeout_s, poll_interval=0.2)
            except Timeout as error:
                raise OutputError(
                    f"{what} is busy",
                    cause=f"another process has held {path} for {timeout_s:g} s",
                    remedy="wait for that process or end it, then run the command again",
                ) from error
    try:
        yield
    finally:
        lock.release()
