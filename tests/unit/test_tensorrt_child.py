"""Builds in a process of their own: answers, errors, death, less effort, interruption.  The work here is pretended."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from facesdk.errors import EngineError, OutputError, UnsupportedOperator
from facesdk_engines.tensorrt import child
from facesdk_engines.tensorrt.build import Built, Request
from facesdk_engines.tensorrt.child import LADDER, build_in_child
from facesdk_engines.tensorrt.options import BuildOptions
from facesdk_engines.tensorrt.progress import OnProgress, Phases


def request(folder: Path, **options: Any) -> Request:
    return Request(folder / "m.onnx", folder / "m.plan", BuildOptions(**options), {})


def nothing(share: float, phase: str) -> None:
    """Nobody looks."""


def succeed(request: Request, on_progress: OnProgress) -> Built:
    on_progress(0.25, "first")
    on_progress(1.0, "second")
    request.plan.write_bytes(b"PLAN")
    return Built("1", (), 4, "aa", float(request.options.level), None, os.getpid(), None)


def starve_until_the_end(request: Request, on_progress: OnProgress) -> Built:
    if request.options.workspace_mb != LADDER[-1][0]:
        raise MemoryError("bad_alloc")
    return succeed(request, on_progress)


def die_once(request: Request, on_progress: OnProgress) -> Built:
    if request.options.level == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return succeed(request, on_progress)


def crash(request: Request, on_progress: OnProgress) -> Built:
    os.kill(os.getpid(), signal.SIGSEGV)
    return succeed(request, on_progress)


def leave(request: Request, on_progress: OnProgress) -> Built:
    os._exit(3)


def refuse(request: Request, on_progress: OnProgress) -> Built:
    raise UnsupportedOperator("node n", cause="why", remedy="what")


def stumble(request: Request, on_progress: OnProgress) -> Built:
    raise KeyError("of the library")


def fill_the_disc(request: Request, on_progress: OnProgress) -> Built:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def pause(request: Request, on_progress: OnProgress) -> Built:
    on_progress(0.5, "long")
    time.sleep(0.5)
    return succeed(request, on_progress)


def linger(request: Request, on_progress: OnProgress) -> Built:
    on_progress(0.5, str(os.getpid()))
    time.sleep(60)
    return succeed(request, on_progress)


def test_facts_and_progress_arrive(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    built, used = build_in_child(request(tmp_path), lambda share, phase: told.append((share, phase)), succeed)
    assert told == [(0.25, "first"), (1.0, "second")]
    assert used.plan.read_bytes() == b"PLAN"
    assert built.layers != os.getpid()


def test_silence_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_TICK", 0.05)
    told: list[tuple[float, str]] = []
    build_in_child(request(tmp_path), lambda share, phase: told.append((share, phase)), pause)
    assert told.count((0.5, "long")) > 3


def test_less_effort_where_memory_does_not_suffice(tmp_path: Path) -> None:
    _, used = build_in_child(request(tmp_path), nothing, starve_until_the_end)
    assert (used.options.workspace_mb, used.options.level) == LADDER[-1]


def test_effort_is_never_raised(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        build_in_child(request(tmp_path, level=1, workspace_mb=600), nothing, leave)
    assert caught.value.cause.split("; ") == [
        "level 1, 600 MB of workspace: the builder ended with status 3",
        "level 0, 500 MB of workspace: the builder ended with status 3",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals on Windows")
def test_a_killed_builder_is_tried_again(tmp_path: Path) -> None:
    built, used = build_in_child(request(tmp_path), nothing, die_once)
    assert (used.options.workspace_mb, used.options.level) == LADDER[0]
    assert built.seconds == LADDER[0][1]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals on Windows")
def test_a_builder_that_always_crashes(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"m\.onnx cannot be built here") as caught:
        build_in_child(request(tmp_path, level=0, workspace_mb=1), nothing, crash)
    assert caught.value.cause == "level 0, 1 MB of workspace: the builder was ended by SIGSEGV"
    assert "another form" in caught.value.remedy


def test_errors_keep_their_kind_and_words(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        build_in_child(request(tmp_path), nothing, refuse)
    assert (caught.value.fact, caught.value.cause, caught.value.remedy) == ("node n", "why", "what")


def test_errors_of_the_library_are_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="KeyError: 'of the library'"):
        build_in_child(request(tmp_path), nothing, stumble)


def test_a_full_disc_is_no_fault_of_the_builder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left") as caught:
        build_in_child(request(tmp_path), nothing, fill_the_disc)
    assert "-o FOLDER" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals on Windows")
def test_whoever_interrupts_ends_the_child(tmp_path: Path) -> None:
    children: list[int] = []

    def interrupt(share: float, phase: str) -> None:
        children.append(int(phase))
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_in_child(request(tmp_path), interrupt, linger)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_phases_are_shares_of_their_parents() -> None:
    phases = Phases()
    phases.start("all", None, 4)
    assert phases.share() == 0
    phases.step("all", 0)
    phases.start("part", "all", 2)
    phases.step("part", 0)
    assert phases.share() == 0.25 + 0.5 / 4
    phases.start("piece", "part", 5)
    phases.step("piece", 4)
    assert phases.share() == 0.5
    phases.finish("piece")
    assert phases.share() == 0.5  # never less than before
    phases.finish("part")
    phases.step("all", 3)
    assert phases.share() == 1


def test_phases_without_steps_and_unknown_parents() -> None:
    phases = Phases()
    phases.start("a", None, 0)
    phases.step("a", 0)
    phases.start("b", "gone", 3)
    phases.step("b", 2)
    assert phases.share() == 1
