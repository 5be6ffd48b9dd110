"""Downloads over HTTP: resumable, checked, from several mirrors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from . import files
from .errors import DownloadError, IntegrityError
from .home import offline
from .writing import writing

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
TIMEOUT_S = 30.0  # without a byte
_ATTEMPTS = 5  # at one mirror, as long as each brings the file further
_PIECE = 1 << 18


def fetch(urls: Sequence[str], target: Path, *, sha256: str, size: int, on_progress: Progress | None = None) -> Path:
    """`target`, holding the file with this sha256; where it already does, nothing is downloaded.

    What has come so far is kept in `<sha256>.part` beside it, so that any later call, at any mirror, goes on from
    there: the pinned hash, stronger than a server's ETag, decides whether the pieces fit.
    Raises DownloadError, IntegrityError (the bad file is deleted) or OutputError; `target` is whole or absent.
    """
    failures: dict[str, DownloadError | IntegrityError] = {}
    part = target.with_name(f"{sha256}.part")
    with writing(target.parent):
        if target.is_file() and files.sha256(target) == sha256:
            return target
        for url in urls:
            for _ in range(_ATTEMPTS):
                start = _length(part)
                try:
                    _receive(url, part, size, on_progress)
                    check(part, sha256, url)
                    return part.replace(target)
                except (DownloadError, IntegrityError) as error:
                    failures[url] = error
                    if _length(part) == start:  # nothing came, or all of it was wrong: the next mirror
                        break
    raise _summary(target.name, failures)


def check(path: Path, sha256: str, origin: str) -> None:
    """Raise IntegrityError, and delete the file, unless it has this sha256."""
    actual = files.sha256(path)
    if actual != sha256:
        path.unlink()
        raise _differs(origin, f"sha256 expected {sha256}, actual {actual}; the file was deleted")


def refuse_offline(origin: str) -> None:
    """Raise DownloadError where $FACESDK_OFFLINE is set."""
    if offline():
        raise DownloadError(
            f"{origin} cannot be downloaded",
            cause="FACESDK_OFFLINE is set",
            remedy="unset FACESDK_OFFLINE, or bring the file from elsewhere: facesdk models add FILE",
        )


def _receive(url: str, part: Path, size: int, on_progress: Progress | None) -> None:
    """Append to `part` what it lacks of `size` bytes."""
    start = _length(part)
    if start == size:
        return
    if start > size:
        part.unlink()
        start = 0
    with _open(url, start) as response:
        begin = _begin(response, size)
        if begin not in (0, start):
            raise _failed(url, f"the server sent bytes from {begin}, asked for from {start}")
        with part.open("ab" if begin else "wb") as file:  # a server that ignores the range begins at 0
            _copy(response, file, url, size, on_progress)


def _open(url: str, start: int) -> Any:
    if not url.startswith("file:"):
        refuse_offline(url)
    headers = {"User-Agent": "facesdk"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the server's file is no longer than the part
            return _open(url, 0)
        raise _failed(url, f"{error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _failed(url, str(getattr(error, "reason", "") or error)) from error


def _begin(response: Any, size: int) -> int:
    """Offset of the response's first byte; raises IntegrityError where the whole is not `size` bytes long."""
    offered = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    begin, total = offered.groups() if offered else ("0", response.headers.get("Content-Length", "*"))
    if total not in ("*", str(size)):
        raise _differs(response.url, f"size expected {size} bytes, actual {total}")
    return int(begin)


def _copy(response: Any, file: IO[bytes], url: str, size: int, on_progress: Progress | None) -> None:
    done = file.tell()
    while done < size:
        try:
            piece = response.read1(_PIECE)
        except (OSError, HTTPException) as error:
            raise _failed(url, f"{error or type(error).__name__} after {done} of {size} bytes") from error
        if not piece:
            raise _failed(url, f"the connection ended after {done} of {size} bytes")
        file.write(piece)
        done += len(piece)
        if on_progress:
            on_progress(min(done, size), size)


def _summary(name: str, failures: dict[str, DownloadError | IntegrityError]) -> DownloadError | IntegrityError:
    last = list(failures.values())[-1]
    if len(failures) == 1:
        return last
    causes = "; ".join(f"{url}: {error.cause}" for url, error in failures.items())
    return type(last)(f"{name} cannot be had from any of {len(failures)} mirrors", cause=causes, remedy=last.remedy)


def _failed(url: str, cause: str) -> DownloadError:
    return DownloadError(
        f"{url} cannot be downloaded",
        cause=cause,
        remedy="check the connection (a proxy is set by HTTPS_PROXY) and run the command again: it resumes",
    )


def _differs(origin: str, cause: str) -> IntegrityError:
    return IntegrityError(
        f"{origin} is not the pinned file",
        cause=cause,
        remedy="run the command again; where it repeats, a proxy or mirror alters the file: use another network",
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
