"""Measuring calls: seeded inputs for a signature, the timing loop, and its statistics, in the manner of trtexec."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .engine import Array, Tensor
from .errors import UsageError

Shape = tuple[int, ...]
SEED = 0
_NO_SHAPES: Mapping[str, Shape] = {}


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long to measure: until both `iterations` and `duration` are reached.  Defaults: those of trtexec."""

    warmup_ms: float = dataclasses.field(default=200, metadata={"help": "calls that are not counted, milliseconds"})
    iterations: int = dataclasses.field(default=10, metadata={"help": "measured calls, at least"})
    duration: float = dataclasses.field(default=3, metadata={"help": "seconds of measured calls, at least"})

    def __post_init__(self) -> None:
        for name, least in (("warmup_ms", 0), ("iterations", 1), ("duration", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UsageError(f"{name} is {value}", remedy=f"give --{name.replace('_', '-')} {least} or more")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Durations of the measured calls in milliseconds; percentiles are nearest ranks; `calls_per_s` by wall clock."""

    calls: int
    min_ms: float
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    calls_per_s: float

    @classmethod
    def of(cls, durations_ms: Sequence[float], wall_s: float) -> Statistics:
        """The statistics of one or more calls that took `wall_s` seconds all together."""
        ordered = sorted(durations_ms)
        return cls(
            calls=len(ordered),
            min_ms=ordered[0],
            mean_ms=statistics.fmean(ordered),
            median_ms=statistics.median(ordered),
            p90_ms=percentile(ordered, 90),
            p95_ms=percentile(ordered, 95),
            p99_ms=percentile(ordered, 99),
            max_ms=ordered[-1],
            calls_per_s=len(ordered) / wall_s,
        )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of an ascending sequence: a value that was measured, never one in between."""
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


def time_calls(call: Callable[[], object], limits: Limits) -> Statistics:
    """Statistics of `call`, after a warm-up of one call or more."""
    _repeat(call, 1, limits.warmup_ms / 1e3)
    start = time.perf_counter()
    durations = _repeat(call, limits.iterations, limits.duration)
    return Statistics.of([seconds * 1e3 for seconds in durations], time.perf_counter() - start)


def _repeat(call: Callable[[], object], least: int, seconds: float) -> list[float]:
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations


def example_shapes(
    inputs: Sequence[Tensor],
    typical: Mapping[str, Shape],
    *,
    given: Mapping[str, Shape] = _NO_SHAPES,
    batch: int | None = None,
) -> dict[str, Shape]:
    """A shape for every input: free axes as `given`, else `batch` rows, else as `typical` (a card's), else one row.

    Raises UsageError naming the tensor where a free axis stays unknown or a shape does not fit.
    """
    if unknown := given.keys() - {tensor.name for tensor in inputs}:
        raise UsageError(
            f"--shapes names {', '.join(sorted(unknown))}", remedy=f"inputs are: {', '.join(map(str, inputs))}"
        )
    rows = _rows_axis(inputs)
    if batch is not None and rows is None:
        raise UsageError(f"--batch {batch}: no input has a free first axis", remedy="leave --batch out")
    sizes = {
        **({rows: 1} if rows else {}),
        **_bind(inputs, {name: shape for name, shape in typical.items() if name not in given}),
        **({rows: batch} if rows and batch is not None else {}),
        **_bind(inputs, given),
    }
    return {tensor.name: tuple(_size(tensor, axis, sizes) for axis in _axes(tensor)) for tensor in inputs}


def rows(inputs: Sequence[Tensor], shapes: Mapping[str, Shape]) -> int | None:
    """How many rows one call with these shapes handles; None where no first axis is free."""
    axis = _rows_axis(inputs)
    return next((shapes[tensor.name][0] for tensor in inputs if axis and _axes(tensor)[:1] == (axis,)), None)


def _rows_axis(inputs: Sequence[Tensor]) -> str | None:
    return next((axis for tensor in inputs for axis in _axes(tensor)[:1] if isinstance(axis, str)), None)


def _axes(tensor: Tensor) -> tuple[int | str, ...]:
    """The shape with names for unnamed free axes; all unnamed first axes are taken for one, the rows."""
    names = ("(rows)", *(f"({tensor.name} {index})" for index in range(1, len(tensor.shape))))
    return tuple(name if axis is None else axis for axis, name in zip(tensor.shape, names, strict=False))


def _bind(inputs: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes that shapes give to free axes."""
    sizes: dict[str, int] = {}
    for tensor in (tensor for tensor in inputs if tensor.name in shapes):
        shape = shapes[tensor.name]
        fits = len(shape) == len(tensor.shape)
        for axis, size in zip(_axes(tensor), shape, strict=False):
            fits = fits and size > 0 and size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
        if not fits:
            raise UsageError(
                f"shape {'x'.join(map(str, shape)) or '()'} does not fit input {tensor}", remedy=_flag(tensor)
            )
    return sizes


def _size(tensor: Tensor, axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in sizes:
        raise UsageError(
            f"input {tensor} has a free axis of unknown size",
            cause="the engine's card names no example shape for it",
            remedy=_flag(tensor),
        )
    return sizes[axis]


def _flag(tensor: Tensor) -> str:
    return f"give --shapes {tensor.name}:{'x'.join('?' if axis is None else str(axis) for axis in tensor.shape)}"


def example_inputs(inputs: Sequence[Tensor], shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Seeded arrays of these shapes: floats in 0..1, bytes in 0..255, other integers 0 (a valid index anywhere)."""
    rng = np.random.default_rng(SEED)
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        scale = 255 if tensor.dtype == np.uint8 else 1
        arrays[tensor.name] = np.asarray(rng.random(shapes[tensor.name]) * scale).astype(tensor.dtype)
    return arrays
