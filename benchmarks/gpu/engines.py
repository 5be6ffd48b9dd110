"""Every bundle's engines and verbs on a device beside the same networks in torch, alternating, held against the CPU.

    python -m benchmarks.gpu.engines build/gpu/bundles -o build/gpu/engines.md

A result beyond the limits that plans have when they are first opened is WRONG, and ends with status 1; where the device
cannot be used, the reason is told, and the status is 3.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from facesdk.errors import ProviderUnavailable
from facesdk.files import write_text

from ..harness import RESULTS, Worker, alternate, device_name, save
from . import engines_report as report
from .cases import Place, places, precisions_of

#: no case is begun after so long; torch.compile is begun on no further network after so long in it
SECONDS, COMPILE_SECONDS = 150.0, 50.0
UNUSABLE = 3
_DEAD = RuntimeError, OSError  # of Worker.ask, where the process is gone
_ROUNDS, _TURN_MS, _MOST_CALLS = 8, 20.0, 50


class Refused(Exception):
    """A worker's answer that it cannot; the message says why."""


class Unusable(Exception):
    """No engine runs on the device here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Lane:
    """One system under measurement: a worker, and the questions that mean this system."""

    name: str
    worker: Worker
    question: dict[str, Any]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def ask(self, question: dict[str, Any]) -> Any:
        """The answer; raises Refused, or, where the worker has died, what `Worker.ask` raises."""
        answer = self.worker.ask({**self.question, **question})
        if isinstance(answer, dict) and "failed" in answer:
            raise Refused(answer["failed"])
        return answer

    def opened(self) -> Lane:
        """The same with the facts of opening; without any the worker has no such system."""
        return dataclasses.replace(self, facts=self.ask({"do": "open"}))


class Clock:
    """What is left of the time of one bundle, and of torch.compile's in all of them."""

    def __init__(self, compile_seconds: float) -> None:
        self.end, self.compiling = 0.0, compile_seconds

    def left(self) -> bool:
        return time.monotonic() < self.end


class Comparison:
    """One bundle's cases in two processes, which are started anew where one has died."""

    def __init__(self, place: Place, device: str, clock: Clock) -> None:
        self._place, self._device, self._clock = place, device, clock
        self._workers: dict[str, Worker] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One a system and case; what could not be measured has "note", what is wrong "wrong"."""
        for case in self._place.cases():
            name = f"{self._place.bundle.name}/{case}"
            if not self._clock.left():
                yield {"case": name, "note": "left out: the time is up"}
                continue
            yield from ({"case": name, **row} for row in self._case(case))

    def close(self) -> None:
        """End the processes."""
        for worker in list(self._workers.values()):
            self._forget(worker)

    def _case(self, case: str) -> Iterator[dict[str, Any]]:
        lanes: list[Lane] = []
        for lane in self._lanes(case):
            opened, failure = self._opened(lane)
            if failure.startswith(ProviderUnavailable.__name__):
                raise Unusable(failure)
            if failure:
                yield self._failed(lane, failure)
            lanes = [each for each in lanes if each.worker in self._workers.values()]  # the others died with theirs
            lanes += [opened] if opened is not None and opened.facts else []
        yield from self._measured(lanes)
        if case == "denoise" and self._device == "cuda":
            yield from self._with_graphs(lanes)
        for kind in list(self._workers):
            self._ask_to_close(kind, case)

    def _opened(self, lane: Lane) -> tuple[Lane | None, str]:
        """The lane, opened, or why not; a worker that died of it is forgotten."""
        try:
            return lane.opened(), ""
        except Refused as reason:
            return None, str(reason)
        except _DEAD as error:
            self._forget(lane.worker)
            return None, f"the process died: {error}"

    def _measured(self, lanes: Sequence[Lane]) -> Iterator[dict[str, Any]]:
        """One row each, of measurements in which all take turns."""
        timed = [*_resident(lanes), *lanes]
        try:
            times = alternate(timed, {"do": "run"}, _ROUNDS, _calls(timed))  # type: ignore[arg-type]
        except (Refused, *_DEAD) as error:
            yield {"wrong": f"the timing broke off: {error}"}
            for worker in list(self._workers.values()):
                self._forget(worker)
            return
        medians = {name: statistics.median(values) for name, values in times.items()}
        yield from (report.row(lane.name, lane.question, lane.facts, times[lane.name], medians) for lane in timed)

    def _with_graphs(self, lanes: Sequence[Lane]) -> Iterator[dict[str, Any]]:
        """ONNX Runtime's own CUDA graphs, each beside the same without, in a process that a capture may end.

        They are off by default, so what goes wrong in them is a note.
        """
        for plain in (lane for lane in lanes if "compiled" not in lane.question):
            name = plain.name + report.GRAPH
            lane, failure = self._opened(Lane(name, self._worker("graphs"), {**plain.question, "graph": True}))
            rows = [] if lane is None else list(self._measured([lane, plain]))
            row = next((row for row in rows if row.get("system", name) == name), {"wrong": failure})
            yield {**row, "system": name, "note": row["wrong"], "wrong": ""}
        self._forget(self._workers.get("graphs"))

    def _lanes(self, case: str) -> Iterator[Lane]:
        """Systems in the order in which they are opened; compilation comes last, while there is time for it."""
        precisions = precisions_of(self._place.bundle, case)
        for precision in precisions:
            way = f"FaceSDK {self._device} {precision}"
            question = {"case": case, "way": way, "precision": precision, "resident": False}
            yield Lane(way, self._worker("engines"), question)
        if not self._place.recipe or not self._worker("torch").about:
            return
        for compiled in (False, True):
            for precision in reversed(precisions):
                way = f"torch {'compile' if compiled else 'eager'} {precision}"
                question = {"case": case, "way": way, "precision": precision, "compiled": compiled}
                lane, begin = Lane(way, self._worker("torch"), question), time.monotonic()
                if not compiled:
                    yield lane
                elif self._clock.compiling > 0 and self._clock.left():
                    yield lane
                    self._clock.compiling -= time.monotonic() - begin

    def _worker(self, kind: str) -> Worker:
        if kind not in self._workers:
            side = "torch" if kind == "torch" else "engines"
            words = [sys.executable, "-m", "benchmarks.gpu.workers", side, self._place.folder, self._device]
            self._workers[kind] = Worker(kind, words)
        return self._workers[kind]

    def _failed(self, lane: Lane, reason: str) -> dict[str, Any]:
        """What an engine cannot do is wrong; what torch cannot is a note."""
        row = {"system": lane.name, "precision": lane.question["precision"]}
        return {**row, "note": f"left out: {reason}"} if "compiled" in lane.question else {**row, "wrong": reason}

    def _ask_to_close(self, kind: str, case: str) -> None:
        try:
            self._workers[kind].ask({"do": "close", "case": case})
        except _DEAD:
            self._forget(self._workers[kind])

    def _forget(self, worker: Worker | None) -> None:
        for kind in [kind for kind, each in self._workers.items() if each is worker]:
            with contextlib.suppress(OSError):
                self._workers.pop(kind).close()


def _resident(lanes: Sequence[Lane]) -> list[Lane]:
    """Engines alone, nothing moved; torch has no other way."""
    alone = [lane for lane in lanes if lane.facts.get("resident")]
    return [
        dataclasses.replace(lane, name=f"{lane.name} resident", question={**lane.question, "resident": True})
        for lane in alone
    ]


def _calls(lanes: Sequence[Lane]) -> int:
    """How often each is called when it is its turn: so that a turn takes about _TURN_MS."""
    longest = max((lane.ask({"do": "run", "calls": 1})[0] for lane in lanes), default=_TURN_MS)
    return max(1, min(_MOST_CALLS, round(_TURN_MS / longest)))


def name_of(device: str) -> str:
    """The name of the device's CSV."""
    if device != "cuda":
        return device_name()
    from facesdk.plans.gpu import first_gpu

    from .report import file_name

    return file_name(first_gpu().name)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what bundles.py wrote")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--compile-seconds", type=float, default=COMPILE_SECONDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV per device")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the table in Markdown")
    options = parser.parse_args(words)
    try:
        rows = measured(places(options.folder), options)
    except (Unusable, ProviderUnavailable) as reason:
        write_text(options.output, f"# Engines\n\nLeft out: {reason}\n")
        print(f"left out: {reason}")
        return UNUSABLE
    return 1 if any(row.get("wrong") for row in rows) else 0


def measured(found: Sequence[Place], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, written after each bundle: what was measured stays, whatever comes."""
    if options.device == "cuda":
        from facesdk.backends import onnxruntime_cuda

        onnxruntime_cuda.require()
    rows: list[dict[str, Any]] = []
    clock, begin, name = Clock(options.compile_seconds), time.monotonic(), name_of(options.device)
    for number, place in enumerate(found, 1):
        clock.end = begin + options.seconds * number / len(found)
        comparison = Comparison(place, options.device, clock)
        with contextlib.closing(comparison):
            for row in comparison.rows():
                rows.append(row)
                print(report.line(row), flush=True)
        path = save("engines", rows, name, options.results)
        write_text(options.output, report.markdown(options.device, rows))
        print(f"rows are in {path}; docs/benchmarks.md has to link it")
    return rows


if __name__ == "__main__":
    sys.exit(main())
