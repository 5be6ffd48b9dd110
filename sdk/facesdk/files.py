"""Files that are either whole or not there: atomic writing, hashing."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import FaceSDKError, OutputError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well, and vanishes otherwise.

    Raises OutputError where the folder cannot be made or written; what was at `path` stays.
    """
    path = Path(path)
    if not path.name:
        raise OutputError(f"{str(path)!r} is not the name of a file", remedy="give a path that ends in one")
    # short: beside a name of the greatest length it must not be too long
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    except FaceSDKError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written",
            cause=error.strerror or str(error),
            remedy="choose a folder that you may write to, with room for the file",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_empty(folder: Path) -> None:
    """Raise OutputError for a folder that holds something, or a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder", remedy="choose a new one, or empty it")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, new or empty, that becomes it when the block ends well, and vanishes otherwise.

    Raises OutputError where it cannot be made or written.
    """
    scratch = folder.absolute().with_name(f".{uuid.uuid4().hex[:12]}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if folder.exists():
            folder.rmdir()  # empty
        scratch.rename(folder)
    except FaceSDKError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written",
            cause=error.strerror or str(error),
            remedy="choose a place that you may write to, with room for the engines",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write all of `data` or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write all of `text` (UTF-8, line feeds as they are) or nothing."""
    write_bytes(path, text.encode())


def sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
