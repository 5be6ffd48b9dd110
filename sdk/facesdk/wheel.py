"""Wheels fetched as plain files by pip, which knows the user's index, proxy and certificates; nothing is installed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

from . import files
from .download import Progress, check, refuse_offline
from .errors import DownloadError, MissingDependency
from .writing import writing

_PREFIX = ".pip-"


def fetch_wheel(requirement: str, target: Path, *, sha256: str, on_progress: Progress | None = None) -> Path:
    """`target`, the wheel of that file name and sha256; where it already is there, nothing is downloaded.

    The file is the same for every machine: its tags, not the machine's, are what pip is asked for.
    Raises DownloadError, IntegrityError, MissingDependency (no pip) or OutputError; `target` is whole or absent.
    Of several callers for one target, only one at a time may be inside.
    """
    with writing(target.parent):
        if target.is_file() and files.sha256(target) == sha256:
            return target
        refuse_offline(requirement)
        for leftover in target.parent.glob(f"{_PREFIX}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=_PREFIX) as folder:
            _pip_download(requirement, target.name, folder, on_progress)
            found = next(Path(folder).glob("*.whl"), None)
            if found is None or found.name != target.name:
                raise _failed(requirement, f"pip brought {found and found.name}, not {target.name}")
            check(found, sha256, f"{requirement} ({target.name})")
            return found.replace(target)


def _pip_download(requirement: str, file: str, folder: str, on_progress: Progress | None) -> None:
    words = _arguments(requirement, file)
    if importlib.util.find_spec("pip") is None:
        raise MissingDependency(
            f"{requirement} cannot be downloaded: this Python has no pip",
            cause=sys.executable,
            remedy="python -m ensurepip; or, where there is a pip, "
            f"pip {' '.join(words)}, and here: facesdk models add {file}",
        )
    command = [sys.executable, "-m", "pip", *words, "--no-input", "--disable-pip-version-check", "--dest", folder]
    if _major_minor(version("pip")) >= (24, 1):  # the first with a bar that is made to be read by programs
        command.append("--progress-bar=raw")
    status, last_line = _run(command, on_progress)
    if status:
        raise _failed(requirement, last_line or f"pip ended with status {status}")


def _arguments(requirement: str, file: str) -> list[str]:
    python, abi, platforms = Path(file).stem.split("-")[-3:]
    words = ["download", "--no-deps", "--only-binary=:all:"]
    if platforms == "any":
        return [*words, requirement]
    words += ["--implementation", "cp", "--abi", abi, "--python-version", python.removeprefix("cp")]
    return [*words, *(f"--platform={platform}" for platform in platforms.split(".")), requirement]


def _run(command: list[str], on_progress: Progress | None) -> tuple[int, str]:
    """Exit status, and the last line that names an error, else the last line."""
    lines = [""]
    with subprocess.Popen(
        command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, encoding="utf-8", errors="replace"
    ) as child:
        for line in child.stdout or ():
            if step := re.match(r"Progress (\d+) of (\d+)", line):
                if on_progress:
                    on_progress(int(step[1]), int(step[2]))
            elif line.strip():
                lines.append(line.strip())
    return child.returncode, ([line for line in lines if line.startswith("ERROR")] or lines)[-1]


def _major_minor(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _failed(requirement: str, cause: str) -> DownloadError:
    return DownloadError(
        f"{requirement} cannot be downloaded",
        cause=cause,
        remedy="check the connection and pip's index (pip config list), then run the command again",
    )
