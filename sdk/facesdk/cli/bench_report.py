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
from ..nvidia import driver
from ..verify import Deviation

_PACKAGES = ("facesdk", "numpy", "onnxruntime", "openvino")
_GPU_PACKAGES = ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings")
_RESIDENT, _MOVED = "excluded", "included"
#: of the CSV file, in this order; units in the names, MB = 1e6 bytes
COLUMNS = (
    "engine", "device", "backend", "precision", "threads", "batch", "shapes",
    "calls", "min_ms", "mean_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "calls_per_s", "rows_per_s",
    "load_ms", "memory_mb", "peak_mb", "max_abs_error", "max_error_in_std", "min_cosine", "nan",
    "cpu", "cores", "python", *_PACKAGES,
    "transfers", "gpu_memory_mb", "gpu", "compute_capability", "driver", *_GPU_PACKAGES,
)  # fmt: skip


def as_text(results: Sequence[Measurement], limits: Limits) -> str:
    """The table, the conditions it was measured under above it, shapes, errors and reasons below.

    Of GPUs, and of what is measured on them alone, there is talk only where one was measured.
    """
    gpu = any(result.transfers for result in results)
    cells = [_cells(result) for result in results]
    shown = [name for name in cells[0] if gpu or name not in ("transfers", "GPU MB")]
    table = [shown, *([row[name] for name in shown] for row in cells)]
    left = 4 if gpu else 3
    preamble = [*_preamble(results, limits), *(_gpu_preamble(results) if gpu else ())]
    return "\n".join([*preamble, "", *_aligned(table, left), "", *_footnotes(results)])


def _preamble(results: Sequence[Measurement], limits: Limits) -> list[str]:
    cpu = processor()
    threads = results[0].threads or "the backend's choice"
    return [
        f"warm-up {limits.warmup_ms:g} ms, then at least {limits.iterations} calls and {limits.duration:g} s; "
        f"random inputs, seed {SEED}; threads: {threads}",
        f"{cpu.model}, {cpu.cores} cores; {_versions(_PACKAGES)}",
    ]


def _gpu_preamble(results: Sequence[Measurement]) -> list[str]:
    """The GPU, and the defaults of trtexec that are in force."""
    here = _this_gpu()
    known = [f"compute capability {here['compute_capability']}", f"driver {here['driver']}"] if here["gpu"] else []
    spins = all(result.spin_wait for result in results if result.transfers)
    return [
        "; ".join(filter(None, (", ".join([here["gpu"] or "GPU unknown", *known]), _versions(_GPU_PACKAGES)))),
        f"on GPUs: CUDA graph on, where no note says why not; spin wait "
        f"{'on' if spins else 'off (it needs: pip install cuda-python)'}; "
        f"transfers {_RESIDENT}: arrays stay on the GPU; {_MOVED}: NumPy in and out in every call",
    ]


def _versions(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions(names).items() if version)


def _cells(result: Measurement) -> dict[str, str]:
    """Heading -> cell."""
    times = result.statistics
    return {
        "engine": result.name, "device": result.device, "precision": result.precision,
        "transfers": result.transfers or "-", "batch": str(result.batch or "-"), "calls": str(times.calls),
        "min ms": _digits(times.min_ms), "mean": _digits(times.mean_ms), "median": _digits(times.median_ms),
        "p90": _digits(times.p90_ms), "p95": _digits(times.p95_ms), "p99": _digits(times.p99_ms),
        "calls/s": _digits(times.calls_per_s), "rows/s": _digits(result.rows_per_s),
        "load ms": _digits(result.load_ms), "memory MB": _digits(result.memory_mb, 0),
        "peak MB": _digits(result.peak_mb, 0), "GPU MB": _digits(result.gpu_memory_mb, 0),
    }  # fmt: skip


def _footnotes(results: Sequence[Measurement]) -> list[str]:
    once = [result for result in results if result.transfers != _MOVED]  # the other line of the same measurement
    notes = [
        "min ... p99: around engine(**arrays), the check of its inputs included; percentiles: nearest rank",
        "memory: what the engine added to a process of its own, at its peak; peak: all of that process",
    ]
    if len(once) < len(results):
        notes.append(f"transfers {_RESIDENT}: around the graph alone, whose inputs were checked and moved before")
        notes.append("GPU MB: what the engine and its arrays added on the GPU, without CUDA's own context")
    notes += [f"{name}: {_shapes_text(table)}" for name, table in {r.name: r.shapes for r in results}.items()]
    notes += [
        f"{result.name} {result.precision} against fp32{_elsewhere(result)}, output {_difference(deviation)}"
        for result in once
        for deviation in result.deviations
    ]
    notes += [f"{result.name} on {result.device}: {remark}" for result in once for remark in result.remarks]
    reasons = {f"{result.name}: {result.reason}": None for result in results if result.reason.startswith("auto")}
    return notes + list(reasons)


def _elsewhere(result: Measurement) -> str:
    return f" on {result.reference}" if result.reference not in ("", result.device) else ""


def _difference(deviation: Deviation) -> str:
    spread = f" ({deviation.max_in_std:.2g} standard deviations)" if math.isfinite(deviation.max_in_std) else ""
    return (
        f"{deviation.output}: largest |difference| {deviation.max_abs:.3g}{spread}, mean {deviation.mean_abs:.2g}, "
        f"cosine {deviation.cosine:.6f}, {deviation.nan} NaN"
    )


def _aligned(table: Sequence[Sequence[str]], left: int) -> list[str]:
    """The lines of a table whose first columns, as many as `left`, hold words."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ([cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
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
    """Processor, GPU and versions, as in every CSV row."""
    cpu = processor()
    return {
        "cpu": cpu.model, "cores": cpu.cores, "python": sys.version.split()[0], **versions(_PACKAGES),
        **_this_gpu(), **versions(_GPU_PACKAGES),
    }  # fmt: skip


def _this_gpu() -> dict[str, str | None]:
    """Facts of the GPU that engines run on, the first; None where there is none."""
    here = driver()
    if here is None or not here.gpus:
        return dict.fromkeys(("gpu", "compute_capability", "driver"))
    return {"gpu": here.gpus[0].name, "compute_capability": here.gpus[0].capability, "driver": str(here)}


def as_csv(results: Sequence[Measurement]) -> str:
    """One row per measurement under `COLUMNS`; empty where a value does not exist."""
    text, here = io.StringIO(), this_machine()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {**_flat(result), **_worst(result), **here, "shapes": _shapes_text(result.shapes)}
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def _flat(result: Measurement) -> dict[str, Any]:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    times = dataclasses.asdict(fields.pop("statistics"))
    del fields["resident"]  # a line of its own
    return {"engine": fields.pop("name"), **fields, **times, "rows_per_s": result.rows_per_s}


def as_dict(result: Measurement) -> dict[str, Any]:
    """The measurement as JSON, which has no infinity: an error without bound is null."""
    deviations = [
        {name: None if value == math.inf else value for name, value in dataclasses.asdict(deviation).items()}
        for deviation in result.deviations
    ]
    return {**_flat(result), "shapes": {n: list(shape) for n, shape in result.shapes.items()}, "deviations": deviations}
