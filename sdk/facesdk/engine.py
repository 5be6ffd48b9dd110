"""`Engine`: one graph, opened on one device.  Two verbs, call and `scan`, are all that the SDK knows of a backend."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .card import Card
from .errors import EngineClosed, EngineError, EngineInputError, UsageError

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]
Device = Literal["auto", "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx"]
#: devices whose arrays lie in a GPU's memory
GPUS = ("cuda", "tensorrt", "tensorrt-rtx")
Precision = Literal["fp32", "bf16", "fp16"]
StepCallback = Callable[[int, int], None]

#: the output that feeds input `x` of the next step in a scan
NEXT = "next_"

log = logging.getLogger("facesdk")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output; a `str` in `shape` is a free axis, equal wherever its name recurs, None an unnamed one."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[np.generic]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


class Backend(Protocol):
    """What runs a graph.  `run` and `scan` get arrays that were checked against `inputs`."""

    device: str
    description: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, arrays: Arrays) -> dict[str, Array]: ...
    def scan(self, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Array]: ...
    def close(self) -> None: ...


def run_error(description: str, error: Exception) -> EngineError:
    """The error for a graph that was opened, but cannot run on what it was given."""
    return EngineError(
        f"{description} failed to run the graph",
        cause=str(error).strip().splitlines()[-1],
        remedy="give other shapes on the free axes, or export the engine again",
    )


def closed_error(what: str) -> EngineClosed:
    """The error for using an engine after `close()`."""
    return EngineClosed(f"{what} was closed", remedy="open it again: Engine.open(...)")


class Engine:
    """A graph on a device.  Safe to call from several threads at once; a context manager that frees it."""

    def __init__(self, backend: Backend, card: Card, path: Path, reason: str) -> None:
        self.card, self.path, self.reason = card, path, reason
        self.device, self.description = backend.device, backend.description
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._signature = {tensor.name: tensor for tensor in self.inputs}
        self._backend: Backend | None = backend

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: Device = "auto",
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        forms: Mapping[str, Path] | None = None,
    ) -> Engine:
        """An engine for an ONNX file.

        device     a name is used or an error says why not; "auto" takes the fastest that is here (see `reason`).
        precision  "bf16" needs device="openvino" and a processor that has it; its error is yours to measure.
                   "fp16" takes forms["fp16"], on cuda or cpu; a processor simulates it, casts to fp32 and gains
                   nothing.
        threads    processor threads; None leaves the choice to the backend.
        forms      device, "<device>-<precision>", which goes first, or "fp16" -> file of the same graph, written for
                   that; used there in place of `path`.
        Raises ModelNotFound, EngineUnreadable, ProviderUnavailable, UsageError.
        """
        from . import backends

        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}", remedy="give 1 or more, or leave it out")
        source = backends.Source(Path(path), forms or {}, threads, precision).in_precision()
        card = Card.read(source.path)
        backend, reason = backends.open_backend(source, card, device)
        log.info("%s runs on %s (%s)", source.path.name, backend.description, reason)
        return cls(backend, card, source.path, reason)

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        """All outputs by name.

        Arrays have the dtypes and shapes of `inputs`; float inputs are finite.
        Raises EngineInputError, EngineClosed, or EngineError where the graph itself fails.
        """
        backend = self._open_backend()
        self._check(arrays)
        return backend.run(arrays)

    def scan(
        self,
        carry: Arrays,
        xs: Arrays,
        constants: Arrays | None = None,
        on_step: StepCallback = lambda step, steps: None,
    ) -> dict[str, Array]:
        """The carry after running the graph once per row of `xs`, everything resident on the device (`jax.lax.scan`).

        carry      input name -> first value; output `next_<name>` feeds it in the following step, same shape and dtype.
        xs         input name -> (steps, ...): row i goes into step i.   constants  input name -> value of every step.
        on_step    called as (steps done, steps); an exception raised there ends the scan.
        Raises EngineInputError, EngineClosed, or EngineError where the graph itself fails.
        """
        backend, constants = self._open_backend(), constants or {}
        _check_series(xs)
        self._check_roles(carry, xs, constants)
        self._check({**constants, **carry, **{name: series[0, ...] for name, series in xs.items()}})
        for name, series in xs.items():
            _check_finite(name, series)
        return backend.scan(carry, xs, constants, on_step)

    def close(self) -> None:
        """Free the graph and its memory; later calls raise EngineClosed."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        signature = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"Engine({self.path.name} on {self.device}: {signature[0]} -> {signature[1]})"

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise closed_error(self.path.name)
        return self._backend

    def _check(self, arrays: Arrays) -> None:
        if arrays.keys() != self._signature.keys():
            raise self._name_error(arrays)
        axes: dict[str, int] = {}
        for name, array in arrays.items():
            _check_array(self._signature[name], array, axes)
            _check_finite(name, array)

    def _name_error(self, arrays: Arrays) -> EngineInputError:
        missing = [str(t) for name, t in self._signature.items() if name not in arrays]
        unknown = [name for name in arrays if name not in self._signature]
        facts = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        remedy = f"inputs are: {', '.join(map(str, self.inputs))}"
        return EngineInputError(f"{self.path.name}: inputs {'; '.join(facts)}", remedy=remedy)

    def _check_roles(self, carry: Arrays, xs: Arrays, constants: Arrays) -> None:
        twice = (carry.keys() & xs.keys()) | (constants.keys() & (carry.keys() | xs.keys()))
        if twice:
            raise EngineInputError(
                f"inputs {', '.join(sorted(twice))} are given twice",
                remedy="put each input into one of carry, xs and constants",
            )
        outputs = {tensor.name: tensor for tensor in self.outputs}
        absent = [NEXT + name for name in carry if NEXT + name not in outputs]
        if absent:
            raise EngineInputError(
                f"{self.path.name} has no output {', '.join(absent)}",
                cause="a scan feeds output next_<name> into input <name>",
                remedy=f"carry only inputs that have one; outputs are: {', '.join(map(str, self.outputs))}",
            )
        for name in carry.keys() & self._signature.keys():
            fed, made = self._signature[name], outputs[NEXT + name]
            if fed.dtype != made.dtype or len(fed.shape) != len(made.shape):
                raise EngineInputError(
                    f"{self.path.name}: output {made} cannot feed input {fed}",
                    remedy="export the engine so that both have one dtype and shape",
                )


def _check_array(tensor: Tensor, array: Array, axes: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != tensor.dtype:
        got = array.dtype if isinstance(array, np.ndarray) else f"a {type(array).__name__}, no array"
        raise EngineInputError(
            f"input {tensor.name} is {got}; {tensor.dtype} is wanted",
            remedy=f"convert it: numpy.asarray(value, '{tensor.dtype}')",
        )
    fits = array.ndim == len(tensor.shape)
    for want, got in zip(tensor.shape, array.shape, strict=False):
        expected = axes.setdefault(want, got) if isinstance(want, str) else want
        fits = fits and expected in (None, got)
    if not fits:
        named = ", ".join(f"{axis} = {size}" for axis, size in axes.items())
        raise EngineInputError(
            f"input {tensor.name} has shape {array.shape}",
            remedy=f"give {tensor}" + (f" with {named}" if named else ""),
        )


def _check_series(xs: Arrays) -> None:
    steps = {len(series) if isinstance(series, np.ndarray) and series.ndim else 0 for series in xs.values()}
    if len(steps) != 1 or 0 in steps:
        raise EngineInputError(
            f"xs have {sorted(steps)} rows",
            remedy="give at least one array in xs, all with the same number of rows, one or more",
        )


def _check_finite(name: str, array: Array) -> None:
    # the sum is several times cheaper than isfinite().all() and is non-finite whenever an element is
    if array.dtype.kind == "f" and not np.isfinite(_sum(array)) and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise EngineInputError(
            f"input {name} holds {bad} NaN or infinite values of {array.size}",
            remedy="find where they come from upstream",
        )


def _sum(array: Array) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):  # what would be warned of is what is looked for
        return array.sum()
