"""Figures of engines: rows for the CSV of the device, lines to follow, and a table to read."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..harness import statistics_of
from .cases import STEPS

#: of a denoising step, to torch in eager mode on the same weights
ASKED = 0.7
#: end of the names of systems that are measured beside the same without
GRAPH = ", CUDA graph"
_HEAD = ("system", "ms", "GPU MB", "error / limit", "cosine", "/ eager", "/ compile")


def row(
    name: str, question: Mapping[str, Any], facts: Mapping[str, Any], times: Sequence[float],
    medians: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """One system's figures; the ratios are those of medians to torch's in the same precision, in the same run."""
    precision, ratios = question["precision"], dict[str, Any]()
    for way in ("eager", "compile"):
        peer = medians.get(f"torch {way} {precision}")
        ratios[f"ratio_to_{way}"] = "" if peer is None else figures(medians[name] / peer)
    if name.endswith(GRAPH):
        ratios["ratio_to_plain"] = figures(medians[name] / medians[name.removesuffix(GRAPH)])
    ours = "compiled" not in question
    kept = ("output", "gpu_mb", "load_ms", "timed_by", "nan", "versions", "wrong")
    measured = {key: figures(facts[key]) for key in ("error", "limit", "max_in_std", "cosine")}
    return {
        "system": name, "precision": precision, **statistics_of(times), "calls": len(times), **ratios,
        "transfers": ("excluded" if question["resident"] else "included") if ours else "excluded",
        **measured, **{key: facts[key] for key in kept},
    }  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """A row while it is measured."""
    name = f"{row['case']:28} {row.get('system', ''):36}"
    if "median_ms" not in row:
        return f"{name} {row.get('wrong') or row.get('note')}"
    told = f"{name} {row['median_ms']:10.3f} ms  error {row['error']:.1e} of {row['limit']:g}"
    return f"{told}  WRONG: {row['wrong']}" if row["wrong"] else told


def markdown(device: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table a case; what is wrong, and what was left out, below it."""
    lines = [f"# Engines on {device}", "", _EXPLAINED, ""]
    for case, group in itertools.groupby(rows, key=lambda row: row["case"]):
        each = list(group)
        timed = [row for row in each if "median_ms" in row]
        lines += [f"## {case}" + (f", a step of {STEPS}" if case.endswith("/denoise") else ""), ""]
        if timed:
            lines += [_row(_HEAD), "|---" * len(_HEAD) + "|", *(_row(_cells(row)) for row in timed), ""]
        lines += [f"WRONG: {row.get('system', '')}: {row['wrong']}\n" for row in each if row.get("wrong")]
        lines += [f"{row.get('system', '')}: {row['note']}\n" for row in each if row.get("note")]
        lines += _target(case, timed)
    return "\n".join(lines) + "\n"


def _target(case: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    ours = [row for row in rows if row["system"].startswith("FaceSDK") and row["ratio_to_eager"] != ""]
    if not case.endswith("/denoise") or not ours:
        return []
    best = min(ours, key=lambda row: row["ratio_to_eager"])
    verdict = "met" if best["ratio_to_eager"] <= ASKED else "MISSED"
    asked = f"Asked: at most {ASKED} of torch eager's time a step"
    return [f"{asked}; best: {best['ratio_to_eager']}, {best['system']}: {verdict}\n"]


def _cells(row: Mapping[str, Any]) -> Sequence[Any]:
    name = row["system"] + (f" ({row['ratio_to_plain']} of plain)" if "ratio_to_plain" in row else "")
    memory = "" if row["gpu_mb"] is None else row["gpu_mb"]
    errors = f"{row['error']:.2g} / {row['limit']:g}"
    return name, row["median_ms"], memory, errors, row["cosine"], row["ratio_to_eager"], row["ratio_to_compile"]


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def figures(value: float) -> float:
    """Rounded to four significant digits."""
    return float(f"{value:.4g}")


_EXPLAINED = (
    "Medians of one run in which systems take turns; weights are random, sizes those that plans are best for. FaceSDK: "
    "by the host's clock, arrays from the host and back, or `resident`: nothing moved. torch: by CUDA's events, "
    "everything resident; no TF32 on either side. Error: the largest difference from the processor's fp32 "
    "over the output's unit, and its limit as for plans; torch's own for comparison."
)
