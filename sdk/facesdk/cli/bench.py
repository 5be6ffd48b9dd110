"""`facesdk bench`: engines and bundles timed in the manner of trtexec, as a table, JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from ..bench import SEED, Limits, Shape
from ..bundle import MANIFEST, Bundle
from ..engine import Device, Precision
from ..errors import FaceSDKError, ModelNotFound, UsageError, one_of
from ..files import write_text
from ..machine import processor, versions
from ..measurement import Job, Measurement, measure_apart
from ..verify import Deviation
from .options import add_options, read_options

_PACKAGES = ("facesdk", "numpy", "onnxruntime", "openvino")
#: of the CSV file, in this order; units in the names, MB = 1e6 bytes
COLUMNS = (
    "engine", "device", "backend", "precision", "threads", "batch", "shapes",
    "calls", "min_ms", "mean_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "calls_per_s", "rows_per_s",
    "load_ms", "memory_mb", "peak_mb", "max_abs_error", "max_error_in_std", "min_cosine", "nan",
    "cpu", "cores", "python", *_PACKAGES,
)  # fmt: skip
_BF16_DEVICES = ("openvino",)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Time engines, or every engine of bundles, on one device or several."""
    parser.add_argument("engines", nargs="+", metavar="ENGINE|BUNDLE", help="an ONNX file, a bundle's folder or name")
    parser.add_argument("--device", default="auto", help=f"of {', '.join(get_args(Device))}; several with commas")
    parser.add_argument("--precision", default="fp32", help="of fp32, bf16; several with commas (default: fp32)")
    parser.add_argument("--threads", type=int, help="processor threads (default: the backend's choice)")
    parser.add_argument("--batch", type=int, help="rows on the free first axis (default: the card's, else 1)")
    parser.add_argument("--shapes", default="", metavar="NAME:1x3x256x256,...", help="input shapes, for free axes")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to this file, replacing it")
    add_options(parser, Limits)
    return _run


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    jobs = _jobs(options)
    results = list(_measured(jobs, quiet=options.json))
    done = [result for result in results if isinstance(result, Measurement)]
    failed = [(job, result) for job, result in zip(jobs, results, strict=True) if isinstance(result, FaceSDKError)]
    if not done:
        raise failed[0][1]
    if options.csv:
        write_text(options.csv, _csv(done))
    if not options.json:
        print(_report(done, jobs[0].limits))
    for job, error in failed:
        print(f"facesdk bench: {job.name} on {job.device} {job.precision}: {error}", file=sys.stderr)
    document = {
        "limits": dataclasses.asdict(jobs[0].limits),
        "seed": SEED,
        "machine": _machine(),
        "results": [_as_dict(result) for result in done],
        "errors": [{"engine": job.name, "device": job.device, **error.as_dict()} for job, error in failed],
    }
    return document, failed[0][1].exit_code if failed else 0


# -- what to measure ----------------------------------------------------------------------------------------


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch is {options.batch}", remedy="give 1 or more")
    devices = _choices("--device", options.device, get_args(Device))
    precisions = _choices("--precision", options.precision, get_args(Precision))
    pairs = [(device, precision) for device in devices for precision in precisions]
    if len(precisions) > 1:  # the table then compares: each device with the precisions it has
        pairs = [(device, precision) for device, precision in pairs if precision == "fp32" or device in _BF16_DEVICES]
    shapes, limits = parse_shapes(options.shapes), read_options(options, Limits)
    found = [engine for word in options.engines for engine in _found(word)]
    names = Counter(name for name, _, _ in found)
    return [
        Job(
            name=name if names[name] == 1 else str(path), path=path, engine=engine,
            device=device, precision=precision,  # type: ignore[arg-type]
            threads=options.threads, batch=options.batch, shapes=shapes, limits=limits,
        )
        for name, path, engine in found
        for device, precision in pairs
    ]  # fmt: skip


def _choices(flag: str, text: str, known: Sequence[str]) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words or [text]:
        if word not in known:
            raise one_of(flag, word, known)
    return words


def _found(word: str) -> list[tuple[str, Path, str | None]]:
    """Name, path and engine of what a word on the command line means: a file, or every engine of a bundle."""
    path = Path(word)
    if path.is_file():
        return [(path.stem, path, None)]
    if (path / MANIFEST).is_file():
        bundle = Bundle(path)
    elif path.suffix == ".onnx" or path.exists():
        raise ModelNotFound(f"{word} is neither an ONNX file nor a bundle's folder", remedy="check the path")
    else:
        from ..store import Store

        bundle = Store().open(word)
    if not bundle.engine_names:
        raise UsageError(f"the bundle {bundle.name} has no engines", remedy="name an ONNX file")
    return [(f"{bundle.name}/{engine}", bundle.folder, engine) for engine in bundle.engine_names]


def parse_shapes(text: str) -> dict[str, Shape]:
    """`image:1x3x256x256,mask:1x1x256x256` as input name -> shape; raises UsageError."""
    shapes: dict[str, Shape] = {}
    for part in filter(None, text.split(",")):
        name, _, sizes = part.rpartition(":")
        if not name or not all(size.isdecimal() and int(size) > 0 for size in sizes.split("x")):
            raise UsageError(f"--shapes: {part!r} is no shape", remedy="write NAME:SIZExSIZE..., as image:1x3x256x256")
        shapes[name.strip()] = tuple(int(size) for size in sizes.split("x"))
    return shapes


def _measured(jobs: Sequence[Job], *, quiet: bool) -> Iterable[Measurement | FaceSDKError]:
    from tqdm import tqdm

    with tqdm(total=len(jobs), unit="engine", disable=quiet or not sys.stderr.isatty(), leave=False) as bar:
        for job in jobs:
            bar.set_description(f"{job.name} {job.device}")
            try:
                yield measure_apart(job)
            except FaceSDKError as error:
                yield error
            bar.update()


# -- what to say --------------------------------------------------------------------------------------------


def _report(results: Sequence[Measurement], limits: Limits) -> str:
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


def _shapes_text(shapes: Any) -> str:
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


def _machine() -> dict[str, Any]:
    cpu = processor()
    return {"cpu": cpu.model, "cores": cpu.cores, "python": sys.version.split()[0], **versions(_PACKAGES)}


def _csv(results: Sequence[Measurement]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = {**_flat(result), **_worst(result), **_machine(), "shapes": _shapes_text(result.shapes)}
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def _flat(result: Measurement) -> dict[str, Any]:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    times = dataclasses.asdict(fields.pop("statistics"))
    return {"engine": fields.pop("name"), **fields, **times, "rows_per_s": result.rows_per_s}


def _as_dict(result: Measurement) -> dict[str, Any]:
    """The measurement as JSON, which has no infinity: an error without bound is null."""
    deviations = [
        {name: None if value == math.inf else value for name, value in dataclasses.asdict(deviation).items()}
        for deviation in result.deviations
    ]
    return {**_flat(result), "shapes": {n: list(shape) for n, shape in result.shapes.items()}, "deviations": deviations}
