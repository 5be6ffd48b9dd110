"""How far a build is: the builder's nested phases as one share that only grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

#: called with the share that is done, 0 to 1, and the phase that is under way; what it raises cancels the build
OnProgress = Callable[[float, str], None]


class Phases:
    """The open phases; a step of one is divided by the phases that it opened."""

    def __init__(self) -> None:
        self._parent: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._highest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._parent[name], self._steps[name], self._done[name] = parent or None, max(steps, 1), 0

    def step(self, name: str, step: int) -> None:
        self._done[name] = step + 1

    def finish(self, name: str) -> None:
        for table in (self._parent, self._steps, self._done):
            table.pop(name, None)

    def share(self) -> float:
        """Of the phase without a parent; never less than before."""
        tops = [name for name, parent in self._parent.items() if parent is None]
        self._highest = max([self._highest, *map(self._share, tops)])
        return self._highest

    def _share(self, name: str) -> float:
        within = max((self._share(each) for each, parent in self._parent.items() if parent == name), default=0.0)
        return min((self._done[name] + within) / self._steps[name], 1.0)


def monitor(trt: ModuleType, on_progress: OnProgress) -> Any:
    """An IProgressMonitor that tells phases, and percents, from whichever thread the builder calls it on."""
    phases, lock = Phases(), threading.Lock()
    told = {"percent": 0}

    def tell(name: str, *, new: bool) -> bool:
        percent = int(phases.share() * 100)
        if new or percent > told["percent"]:
            told["percent"] = percent
            try:
                on_progress(percent / 100, name)
            except OSError:  # nobody listens any more: the builder is asked to stop
                return False
        return True

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                phases.start(phase_name, parent_phase, num_steps)
                tell(phase_name, new=True)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                phases.step(phase_name, step)
                return tell(phase_name, new=False)

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                phases.finish(phase_name)

    return Monitor()
