"""Alternating timing of systems that each live in a process of their own, and results kept as CSV per device."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facesdk.files import write_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PEERS = ROOT / "build" / "peers"


class Worker:
    """A child process that answers one JSON line per JSON line: see `serve`."""

    def __init__(self, name: str, command: Sequence[str | Path], processor: int | None = None) -> None:
        self.name = name
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **threads},
        )  # fmt: skip
        if processor is not None:
            os.sched_setaffinity(self._process.pid, {processor})
        self.about = self.ask({"do": "about"})

    def ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} died on {question}; run it alone to see why: {self._process.args}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate(timeout=30)


def alternate(
    workers: Sequence[Worker], question: Mapping[str, Any], rounds: int, calls: int
) -> dict[str, list[float]]:
    """Milliseconds of every call: the workers take turns, `calls` each, for `rounds` rounds, after one not counted."""
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for turn in range(rounds + 1):
        for worker in workers:
            measured = worker.ask({**question, "calls": calls})
            if turn:
                times[worker.name] += measured
    return times


def statistics_of(times: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile and minimum, rounded to microseconds."""
    ordered = sorted(times)
    figures = {
        "median_ms": statistics.median(ordered),
        "p90_ms": ordered[int(0.9 * len(ordered))],
        "min_ms": ordered[0],
    }
    return {name: round(value, 3) for name, value in figures.items()}


def peer_python(name: str, *requirements: str) -> Path:
    """The interpreter of a virtual environment under build/peers with exactly these requirements, made at first use."""
    folder = PEERS / name
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        stamp.write_text(wanted)
    return python


def save(benchmark: str, rows: Sequence[Mapping[str, Any]], device: str | None = None, results: Path = RESULTS) -> Path:
    """Replace the rows of one benchmark in results/<device>.csv, by default this processor's; the file's path."""
    path = results / f"{device or device_name()}.csv"
    before = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    kept = [row for row in before if row["benchmark"] != benchmark]
    date = datetime.date.today().isoformat()
    new = [{"benchmark": benchmark, "date": date, **row} for row in rows]
    columns = list(dict.fromkeys(name for row in [*kept, *new] for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *new])
    write_text(path, text.getvalue())
    return path


def device_name() -> str:
    """The processor as a file name: cpu-amd-epyc, for example."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    model = found.group(1) if found else platform.processor() or platform.machine()
    model = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", model)
    return "cpu-" + re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def serve(answer: Any) -> None:
    """Answer JSON lines on standard input by `answer(question)` until it closes."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def timed(work: Callable[[], Any], calls: int) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return times
