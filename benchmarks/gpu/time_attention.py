"""The kernels' times on the published systems' attentions, in turn with torch's on the same numbers."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from facesdk.cuda.views import View
from facesdk.files import write_text
from facesdk.kernels import load
from facesdk.kernels.launch import arguments_of
from facesdk.kernels.operands import sizes_of

from ..harness import RESULTS, save
from . import report, sdpa
from .ceilings import Ceilings
from .device import Device, open_device
from .pool import BYTES, Pool
from .problems import Problem, timed

Work = Callable[[], Any]

OURS = "facesdk"
_ROUNDS = 15
# one sample of the clock takes about so long, by a rough guess at the kernel's time
_SAMPLE_SECONDS, _GUESSED_FLOPS, _GUESSED_LAUNCH = 2e-3, 2e14, 4e-6
_MOST_LAUNCHES = 400
# relative difference of the outputs beyond which two systems did not compute the same
_SAME = {"fp16": 4e-3, "bf16": 3e-2}


def launches_of(problem: Problem) -> int:
    """How many launches one sample holds."""
    guess = problem.flops / _GUESSED_FLOPS + _GUESSED_LAUNCH
    return max(4, min(_MOST_LAUNCHES, round(_SAMPLE_SECONDS / guess)))


def systems_of(device: Device, kernels: Any, problem: Problem, sets: list[dict[str, View]]) -> dict[str, list[Work]]:
    """System -> its launches, one for each set of operands."""
    sizes = sizes_of({name: seen.shape for name, seen in sets[0].items()})
    arguments = [arguments_of(views, sizes, problem.dim**-0.5) for views in sets]
    systems: dict[str, list[Work]] = {OURS: [_launch(kernels, one, device.stream) for one in arguments]}
    torch, tensor = getattr(device, "torch", None), getattr(device, "tensor", None)
    if torch is not None and tensor is not None:
        tensors = [{name: tensor(seen) for name, seen in views.items()} for views in sets]
        for name in sdpa.peers(torch, problem, tensors[0]):
            systems[name] = [sdpa.call(torch, name, problem, one) for one in tensors]
    return systems


def _launch(kernels: Any, arguments: Any, stream: int) -> Work:
    return lambda: kernels.forward(arguments, stream)


def samples(device: Device, systems: Mapping[str, list[Work]], rounds: int) -> dict[str, tuple[str, list[float]]]:
    """System -> ("graph" or "calls", milliseconds of one launch in each round); systems take turns."""
    recorded = {name: device.record(works) for name, works in systems.items()}
    times: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):  # the first is not counted
        for name, (_, work) in recorded.items():
            taken = device.milliseconds(work) / len(systems[name])
            if turn:
                times[name].append(taken)
    return {name: (how, times[name]) for name, (how, _) in recorded.items()}


def differences(device: Any, systems: Mapping[str, list[Work]], views: Mapping[str, View]) -> dict[str, float]:
    """Peer -> norm of the difference of its first output from ours, over the norm of ours."""
    if len(systems) == 1:
        return {}
    systems[OURS][0]()
    device.synchronize()
    ours = device.tensor(views["out"]).double()
    peers = {name: works[0] for name, works in systems.items() if name != OURS}
    return {name: float((call().double() - ours).norm() / ours.norm()) for name, call in peers.items()}


def measure(
    device: Device, kernels: Any, pool: Pool, problem: Problem, ceilings: Ceilings, rounds: int = _ROUNDS
) -> list[dict[str, Any]]:
    """One row per system."""
    sets = list(pool.sets(problem, launches_of(problem)))
    systems = systems_of(device, kernels, problem, sets)
    apart = differences(device, systems, sets[0])
    times = samples(device, systems, rounds)
    best = min((statistics.median(t) for name, (_, t) in times.items() if name != OURS), default=None)
    rows = []
    for name, (how, taken) in times.items():
        row = report.row(problem, name, taken, how, len(sets), ceilings, best)
        if name in apart:
            row["difference"] = f"{apart[name]:.1e}"
            if not apart[name] < _SAME[problem.element]:
                row["wrong"] = f"differs from {OURS}"
        rows.append(row)
    return rows


def main(
    words: list[str] | None = None,
    device: Device | None = None,
    kernels: Any = None,
    problems: Callable[[], Any] = timed,
    pool_bytes: int = BYTES,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ceilings", type=Path, required=True, help="what ceilings.py wrote")
    parser.add_argument("--seconds", type=float, default=1e9, help="no problem is begun after so long")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV per device")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the table in Markdown")
    arguments = parser.parse_args(words)
    device, kernels = device or open_device(), kernels or load()
    ceilings, rows, pools = Ceilings.read(arguments.ceilings), list[dict[str, Any]](), dict[str, Pool]()
    end = time.monotonic() + arguments.seconds
    for problem in problems():
        if time.monotonic() > end:
            print(f"left out, the time is up: {problem}")
            continue
        if problem.element not in pools:
            pools[problem.element] = Pool(device, problem.element, pool_bytes)
        rows += measure(device, kernels, pools[problem.element], problem, ceilings, arguments.rounds)
    versions = report.versions(device)
    path = save(
        "attention", [row | {"versions": versions} for row in rows], report.file_name(device.name), arguments.results
    )
    text = report.markdown(device.name, versions, rows, ceilings)
    write_text(arguments.output, text)
    print(text)
    print(f"rows are in {path}; docs/benchmarks.md has to link it")
    return 1 if any(row.get("wrong") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
