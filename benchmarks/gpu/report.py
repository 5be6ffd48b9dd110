"""Figures of the GPU benchmark: rows for the CSV of the device, and a table to read."""

from __future__ import annotations

import importlib.metadata
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from facesdk.kernels.library import VERSION

from .ceilings import Ceilings
from .device import Device
from .problems import Problem


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


def file_name(device: str) -> str:
    """A GPU's name as a file name, without the maker's: h200, for example."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia")).strip("-")


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
