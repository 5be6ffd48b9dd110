"""Figures of the GPU benchmark: rows for the CSV of the device, and a table to read."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facesdk.files import write_text
from facesdk.kernels.library import VERSION

from .ceilings import Ceilings
from .device import Device
from .problems import Problem

RESULTS = Path(__file__).parents[1] / "results"


def row(
    problem: Problem,
    system: str,
    taken: Sequence[float],
    how: str,
    launches: int,
    ceilings: Ceilings,
    best: float | None,
) -> dict[str, Any]:
    """One system's figures; `taken`: milliseconds per launch, `best`: the median of the fastest SDPA backend."""
    ordered = sorted(taken)
    median = statistics.median(ordered)
    flops, memory = ceilings.flops_per_second(problem.element), ceilings.bytes_per_second
    floor = problem.floor_seconds(flops, memory) * 1e3 if flops and memory else None
    return {
        "case": case(problem),
        "system": system,
        "median_ms": _figures(median),
        "p90_ms": _figures(ordered[int(0.9 * len(ordered))]),
        "min_ms": _figures(ordered[0]),
        "calls": launches * len(ordered),
        "timed_by": how,
        "tflops": _figures(problem.flops / median / 1e9),
        "fraction_of_ceiling": "" if floor is None else _figures(floor / median),
        "ratio_to_sdpa": "" if best is None else _figures(median / best),
    }


def case(problem: Problem) -> str:
    """What is computed, in words and numbers."""
    keys = f"{problem.keys} + {problem.keys2}" if problem.keys2 else str(problem.keys)
    sizes = f"batch {problem.batch}, {problem.heads} heads x {problem.dim}, {problem.queries} queries, {keys} keys"
    return f"{problem.name}: {sizes}, {problem.element}"


def save(results: Path, device: str, benchmark: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Replace the rows of one benchmark in <results>/<device>.csv, as the other benchmarks do; the file's path."""
    path = results / f"{file_name(device)}.csv"
    kept = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    date = datetime.date.today().isoformat()
    new = [{"benchmark": benchmark, "date": date, **row} for row in rows]
    every = [row for row in kept if row["benchmark"] != benchmark] + new
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in every for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    write_text(path, text.getvalue())
    return path


def file_name(device: str) -> str:
    """A GPU's name as a file name: gpu-nvidia-h200, for example."""
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def versions(device: Device) -> str:
    """What was timed."""
    found = [f"facesdk kernels {VERSION}"]
    if device.kind == "torch":
        found.append(f"torch {importlib.metadata.version('torch')}")
    return "; ".join(found)


def markdown(device: str, versions: str, rows: Sequence[Mapping[str, Any]], ceilings: Ceilings) -> str:
    """A line per case: the kernel's figures, and the fastest SDPA backend's beside them."""
    lines = [f"# Attention on {device}", "", f"{versions}. {_ceilings(ceilings)}", ""]
    lines += ["| case | ms | TFLOP/s | of the ceiling | best SDPA | its ms | time / best SDPA's |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for ours in (row for row in rows if row["system"] == "facesdk"):
        others = [row for row in rows if row["case"] == ours["case"] and row["system"] != "facesdk"]
        best = min(others, key=lambda row: row["median_ms"], default=None)
        peer = (best["system"].removeprefix("sdpa "), best["median_ms"]) if best else ("", "")
        figures = (ours["case"], ours["median_ms"], ours["tflops"], ours["fraction_of_ceiling"], *peer,
                   ours["ratio_to_sdpa"])  # fmt: skip
        lines.append("| " + " | ".join(map(str, figures)) + " |")
    lines += [f"\nWRONG: {row['case']}, {row['system']}: {row['wrong']}" for row in rows if row.get("wrong")]
    if all(row["system"] == "facesdk" for row in rows):
        lines += ["", "torch is not here: SDPA was left out, and launches were timed with the host's share in them."]
    return "\n".join(lines) + "\n"


def _ceilings(ceilings: Ceilings) -> str:
    if ceilings.bytes_per_second is None:
        return "Ceilings were not measured."
    fp16, bf16 = ceilings.fp16_flops_per_second or 0, ceilings.bf16_flops_per_second or 0
    return (
        f"Ceilings measured in the same run: {ceilings.bytes_per_second / 1e12:.2f} TB/s copied, products "
        f"{fp16 / 1e12:.0f} TFLOP/s fp16, {bf16 / 1e12:.0f} bf16."
    )


def _figures(value: float) -> float:
    """Rounded to four significant digits."""
    return float(f"{value:.4g}")
