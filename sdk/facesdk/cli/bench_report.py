"""What `facesdk bench` says: the table with its conditions, the CSV rows, the JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..bench import SEED, Limits, Shape
from ..machine import processor, versions
from ..measurement import Measurement
from ..verify import Deviation

_PACKAGES = ("facesdk", "numpy", "onnxruntime", "openvino")
#: of the CSV file, in this order; units in the names, MB = 1e6 bytes
COLUMNS = (
    "engine", "device", "backend", "precision", "threads", "batch", "shapes",
    "calls", "min_ms", "mean_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "calls_per_s", "rows_per_s",
    "load_ms", "memory_mb", "peak_mb", "max_abs_error", "max_error_in_std", "min_cosine", "nan",
    "cpu", "cores", "python", *_PACKAGES,
)  # fmt: skip


def as_text(results: Sequence[Measurement], limits: Limits) -> str:
    """The table, the conditions it was measured under above it, shapes, errors and reasons below."""
    head = ["engine", "device", "precision", "batch", "calls", "min ms", "mean", "median", "p90", "p95", "p99"]
    head += ["calls/s", "rows/s", "load ms", "memory MB", "peak MB"]
    table = [head, *map(_cells, results)]
    return "\n".join([*_preamble(results, limits), "", *_aligned(table), "", *_footnotes(results)])


def _preamble(results: Sequence[Measurement], limits: Limits) -> list[str]:
    cpu = processor()
    packages = ", ".join(f"{name} {version}" for name, version in versions(_PACKAGES).items() if version)
    threads = results[0].threads or "the backend's choice"
    return [
        f"warm-up {limits.warmup_ms:g} ms, then at least {limits.iterations} calls and {limits.duration:g} s; "
        f"random inputs, seed {SEED}; threads: {threads}",
        f"{cpu.model}, {cpu.cores} cores; {packages}",
    ]


def _cells(result: Measurement) -> list[str]:
    times = result.statistics
    durations = [times.min_ms, times.mean_ms, times.median_ms, times.p90_ms, times.p95_ms, times.p99_ms]
    return [
        result.name, result.device, result.precision, str(result.batch or "-"), str(times.calls),
        *map(_digits, [*durations, times.calls_per_s, result.rows_per_s, result.load_ms]),
        *(_digits(value, 0) for value in (result.memory_mb, result.peak_mb)),
    ]  # fmt: skip


def _footnotes(results: Sequence[Measurement]) -> list[str]:
    notes = [
        "min ... p99: around engine(**arrays), the check of its inputs included; percentiles: nearest rank",
        "memory: what the engine added to a process of its own, at its peak; peak: all of that process",
    ]
    notes += [f"{name}: {_shapes_text(table)}" for name, table in {r.name: r.shapes for r in results}.items()]
    notes += [
        f"{result.name} {result.precision} against fp32, output {_difference(deviation)}"
        for result in results
        for deviation in result.deviations
    ]
    reasons = {f"{result.name}: {result.reason}": None for result in results if result.reason.startswith("auto")}
    return notes + list(reasons)


def _difference(deviation: Deviation) -> str:
    spread = f" ({deviation.max_in_std:.2g} standard deviations)" if math.isfinite(deviation.max_in_std) else ""
    return (
        f"{deviation.output}: largest |difference| {deviation.max_abs:.3g}{spread}, mean {deviation.mean_abs:.2g}, "
        f"cosine {deviation.cosine:.6f}, {deviation.nan} NaN"
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ([cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
            for row in table)  # fmt: skip
    return ["  ".join(row).rstrip() for row in rows]


def _digits(value: float | None, most: int = 3) -> str:
    """Three digits or more: 0.123, 1.23, 12.3, 123."""
    if value is None:
        return "-"
    return f"{value:.{max(most - sum(abs(value) >= size for size in (1, 10, 100)), 0)}f}"


def _shapes_text(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _worst(result: Measurement) -> dict[str, float | None]:
    """The largest deviation over all outputs; in standard deviations, over those whose reference varies."""
    every = result.deviations
    return {
        "max_abs_error": max((deviation.max_abs for deviation in every), default=None),
        "max_error_in_std": max((d.max_in_std for d in every if math.isfinite(d.max_in_std)), default=None),
        "min_cosine": min((deviation.cosine for deviation in every), default=None),
        "nan": sum(deviation.nan for deviation in every) if every else None,
    }


def this_machine() -> dict[str, Any]:
    """Processor and versions, as in every CSV row."""
    cpu = processor()
    return {"cpu": cpu.model, "cores": cpu.cores, "python": sys.version.split()[0], **versions(_PACKAGES)}


def as_csv(results: Sequence[Measurement]) -> str:
    """One row per measurement under `COLUMNS`; empty where a value does not exist."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {**_flat(result), **_worst(result), **this_machine(), "shapes": _shapes_text(result.shapes)}
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def _flat(result: Measurement) -> dict[str, Any]:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    times = dataclasses.asdict(fields.pop("statistics"))
    return {"engine": fields.pop("name"), **fields, **times, "rows_per_s": result.rows_per_s}


def as_dict(result: Measurement) -> dict[str, Any]:
    """The measurement as JSON, which has no infinity: an error without bound is null."""
    deviations = [
        {name: None if value == math.inf else value for name, value in dataclasses.asdict(deviation).items()}
        for deviation in result.deviations
    ]
    return {**_flat(result), "shapes": {n: list(shape) for n, shape in result.shapes.items()}, "deviations": deviations}
