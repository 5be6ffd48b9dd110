"""`facesdk bench`: engines and bundles timed in the manner of trtexec, as a table, JSON or CSV."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from ..bench import SEED, Limits, Shape
from ..bundle import MANIFEST, Bundle
from ..engine import GPUS, Device, Precision
from ..errors import FaceSDKError, ModelNotFound, UsageError, one_of
from ..files import write_text
from ..graph import Graph
from ..measurement import Job, Measurement, measure_apart
from .bench_report import as_csv, as_dict, as_text, this_machine
from .options import add_options, read_options

#: where the precisions run that do not run everywhere
_DEVICES = {"bf16": ("openvino",), "fp16": ("auto", "cpu", *GPUS)}


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Time engines, or every engine of bundles, on one device or several."""
    parser.add_argument("engines", nargs="+", metavar="ENGINE|BUNDLE", help="an ONNX file, a bundle's folder or name")
    parser.add_argument("--device", default="auto", help=f"of {', '.join(get_args(Device))}; several with commas")
    parser.add_argument("--precision", default="fp32", help=f"of {', '.join(get_args(Precision))}; several with commas")
    parser.add_argument("--threads", type=int, help="processor threads (default: the backend's choice)")
    parser.add_argument("--batch", type=int, help="rows on the free first axis (default: the card's, else 1)")
    parser.add_argument("--shapes", default="", metavar="NAME:1x3x256x256,...", help="input shapes, for free axes")
    parser.add_argument("--plans", type=Path, metavar="FOLDER", help="of TensorRT plans (default: the ONNX file's)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table to this file, replacing it")
    add_options(parser, Limits)
    return _run


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    jobs = _jobs(options)
    results = list(_measured(jobs, quiet=options.json))
    done = [line for result in results if isinstance(result, Measurement) for line in result.lines()]
    failed = [(job, result) for job, result in zip(jobs, results, strict=True) if isinstance(result, FaceSDKError)]
    complaints = list(_complaints(failed))
    if not done and len(complaints) == 1:
        raise failed[0][1]
    if done and options.csv:
        write_text(options.csv, as_csv(done))
    if done and not options.json:
        print(as_text(done, jobs[0].limits))
    for complaint in complaints:
        print(f"facesdk bench: {complaint}", file=sys.stderr)
    document = {
        "limits": dataclasses.asdict(jobs[0].limits),
        "seed": SEED,
        "machine": this_machine(),
        "results": [as_dict(result) for result in done],
        "errors": [{"engine": job.name, "device": job.device, **error.as_dict()} for job, error in failed],
    }
    return document, failed[0][1].exit_code if failed else 0


def _complaints(failed: Iterable[tuple[Job, FaceSDKError]]) -> Iterator[str]:
    """What went wrong; what holds for several engines of a device and precision is said once."""
    alike: dict[tuple[str, ...], list[tuple[Job, FaceSDKError]]] = {}
    for job, error in failed:
        alike.setdefault((job.device, job.precision, error.code, error.cause, error.remedy), []).append((job, error))
    for (job, error), *others in alike.values():
        more = f" and {len(others)} more" if others else ""
        yield f"{job.name}{more} on {job.device} {job.precision}: {error}"


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch is {options.batch}", remedy="give 1 or more")
    devices = _choices("--device", options.device, get_args(Device))
    precisions = _choices("--precision", options.precision, get_args(Precision))
    pairs = [(device, precision) for device in devices for precision in precisions]
    for only, places in _DEVICES.items():
        if set(devices) & set(places):  # the table compares each device in the precisions that it has
            pairs = [(device, precision) for device, precision in pairs if precision != only or device in places]
    limits, found = read_options(options, Limits), [engine for word in options.engines for engine in _found(word)]
    names, shapes = Counter(name for name, _, _ in found), parse_shapes(options.shapes)
    known = [_inputs(path, engine) & shapes.keys() for _, path, engine in found]
    if unknown := shapes.keys() - set().union(*known):
        raise UsageError(
            f"--shapes names {', '.join(sorted(unknown))}, which no engine has", remedy=f"facesdk inspect {found[0][1]}"
        )
    return [
        Job(
            name=name if names[name] == 1 else str(path), path=path, engine=engine,
            device=device, precision=precision,  # type: ignore[arg-type]
            threads=options.threads, batch=options.batch, limits=limits, plans=options.plans,
            shapes={tensor: shapes[tensor] for tensor in own},
        )
        for (name, path, engine), own in zip(found, known, strict=True)
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


def _inputs(path: Path, engine: str | None) -> set[str]:
    """Names of the inputs; none where the file cannot be read, which opening it reports."""
    with contextlib.suppress(FaceSDKError):
        file = Bundle(path).forms(engine)["default"] if engine else path
        return {value.name for value in Graph.read(file).inputs}
    return set()


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
