"""A build in a process of its own: its memory goes back when it ends, its death is an error, and it can be ended."""

from __future__ import annotations

import dataclasses
import errno
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from facesdk import errors
from facesdk.errors import EngineError, FaceSDKError

from .build import Built, Request, build
from .progress import OnProgress

Build = Callable[[Request, OnProgress], Built]
#: MB of workspace and level of search, tried in this order where memory did not suffice as asked; our own choice
LADDER = ((2000, 2), (500, 0))
#: seconds of silence after which the last progress is told again: one phase can take most of a build
_TICK = 1.0

#: a full disc, a file beyond a limit, a quota
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_NO_MEMORY = "close other programs, narrow [profiles.*] in bundle.toml, or build on a machine with more memory"
_CRASHED = "write the engine in another form, [engines.<name>] tensorrt = FILE: the builder crashes on this one"

log = logging.getLogger("facesdk")


class _Died(Exception):
    """The process ended without an answer."""


def build_in_child(request: Request, on_progress: OnProgress, work: Build = build) -> tuple[Built, Request]:
    """Facts of the plan, and the request that led to it: of less effort where the builder ran out of memory or died.

    What `on_progress` raises, or Ctrl-C, ends the child.  Raises what `work` raises; EngineError where no effort
    was small enough.
    """
    reasons = []
    for attempt in _efforts(request):
        found = _attempted(attempt, on_progress, work)
        if isinstance(found, Built):
            return found, attempt
        reasons.append(f"level {attempt.options.level}, {_workspace(attempt)}: {found}")
        log.warning("building %s failed, %s", request.onnx.name, reasons[-1])
    raise EngineError(
        f"{request.onnx.name} cannot be built here",
        cause="; ".join(reasons),
        remedy=_CRASHED if "SIGSEGV" in reasons[-1] or "SIGABRT" in reasons[-1] else _NO_MEMORY,
    )


def _attempted(request: Request, on_progress: OnProgress, work: Build) -> Built | str:
    """Facts of the plan, or why less effort may lead to one."""
    try:
        return _run(request, on_progress, work)
    except (MemoryError, _Died) as error:
        return str(error)


def _efforts(request: Request) -> Iterator[Request]:
    """The request, then ones of less effort."""
    yield request
    asked = request.options
    for workspace_mb, level in LADDER:
        less = min(workspace_mb, asked.workspace_mb or workspace_mb), min(level, asked.level)
        if less != (asked.workspace_mb, asked.level):
            yield dataclasses.replace(request, options=dataclasses.replace(asked, workspace_mb=less[0], level=less[1]))


def _workspace(request: Request) -> str:
    size = request.options.workspace_mb
    return f"{size} MB of workspace" if size else "workspace as large as it likes"


def _run(request: Request, on_progress: OnProgress, work: Build) -> Built:
    # spawned: a builder must not inherit threads, nor a CUDA context
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, request, work), daemon=True)
    child.start()
    theirs.close()  # so that its death ends our reading
    try:
        return _listen(ours, on_progress)
    except EOFError as error:
        child.join()
        raise _Died(_death(child.exitcode)) from error
    finally:
        child.kill()
        child.join()
        ours.close()


def _listen(connection: Connection, on_progress: OnProgress) -> Built:
    last = 0.0, "starting"
    while True:
        while not connection.poll(_TICK):
            on_progress(*last)
        kind, *values = connection.recv()
        if kind == "progress":
            last = values[0], values[1]
            on_progress(*last)
        elif kind == "built":
            built: Built = values[0]
            return built
        elif kind == "memory":
            raise MemoryError(*values)
        else:
            name, facts = values
            raise getattr(errors, name)(facts["fact"], cause=facts["cause"], remedy=facts["remedy"])


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the builder was ended by {signal.Signals(-code).name}"
    return f"the builder ended with status {code}"


def _child(connection: Connection, request: Request, work: Build) -> None:
    """What the other process does: build, and tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    tell: Callable[[tuple[Any, ...]], None] = connection.send
    try:
        tell(("built", work(request, lambda share, phase: tell(("progress", share, phase)))))
    except MemoryError as error:
        tell(("memory", str(error) or "not enough memory"))
    except FaceSDKError as error:
        tell(("error", type(error).__name__, error.as_dict()))
    except Exception as error:  # of a library; its type and words are all that can be passed on
        tell(("error", *_words(error, request)))


def _words(error: Exception, request: Request) -> tuple[str, dict[str, str]]:
    """Which of our errors another one is, and its facts."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        fact, cause = f"{request.plan.name} cannot be written", error.strerror or str(error)
        return "OutputError", {"fact": fact, "cause": cause, "remedy": "choose a folder with more room: -o FOLDER"}
    fact, cause = f"building {request.onnx.name} failed", f"{type(error).__name__}: {error}"
    return "EngineError", {"fact": fact, "cause": cause, "remedy": "report it, with the ONNX file"}
