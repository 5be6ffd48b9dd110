"""What an engine takes and gives, and the checks of arrays against it before a backend sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EngineInputError, UsageError

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, Array]

#: the output that feeds input `x` of the next step in a scan
NEXT = "next_"
_CUDA = (2, 13)  # DLDeviceType: kDLCUDA, kDLCUDAManaged


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input or output; a `str` in `shape` is a free axis, equal wherever its name recurs, None an unnamed one.

    largest  shape of an input that can be given, where free axes have limits.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[np.generic]
    largest: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of the engine in `file`; `device` is named where arrays lie on a GPU that it cannot read."""

    file: str
    device: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def check(self, arrays: Mapping[str, Any], *, on_gpu: bool = False) -> None:
        """Raise EngineInputError where names, dtypes or shapes differ, or a float array on the host is not finite.

        on_gpu  arrays in a GPU's memory are taken, if they are packed.
        """
        if arrays.keys() != {tensor.name for tensor in self.inputs}:
            raise self._name_error(arrays)
        axes: dict[str, int] = {}
        for tensor in self.inputs:
            array = arrays[tensor.name]
            if isinstance(array, np.ndarray):
                _check_fit(tensor, array.dtype, array.shape, axes)
                _check_finite(tensor.name, array)
            else:
                _check_fit(tensor, *self._read(tensor, array, on_gpu), axes)

    def check_scan(self, carry: Arrays, xs: Arrays, constants: Arrays) -> None:
        """Raise EngineInputError where these cannot be the arrays of a scan."""
        _check_series(xs)
        self._check_roles(carry, xs, constants)
        self.check({**constants, **carry, **{name: series[0, ...] for name, series in xs.items()}})
        for name, series in xs.items():
            _check_finite(name, series)

    def _read(self, tensor: Tensor, array: Any, on_gpu: bool) -> tuple[object, tuple[int, ...]]:
        """Dtype and shape of what is no NumPy array."""
        if not lies_on_gpu(array):
            raise _dtype_error(tensor, f"a {type(array).__name__}, no array")
        if not on_gpu:
            raise EngineInputError(
                f"input {tensor.name} lies on a GPU, {self.file} runs on {self.device} and takes it from the host",
                remedy="give a NumPy array; engines on cuda, tensorrt and tensorrt-rtx read arrays on the GPU in calls",
            )
        return _facts_on_gpu(tensor, array)

    def _name_error(self, arrays: Mapping[str, Any]) -> EngineInputError:
        known = {tensor.name for tensor in self.inputs}
        missing = [str(tensor) for tensor in self.inputs if tensor.name not in arrays]
        unknown = [name for name in arrays if name not in known]
        facts = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
        remedy = f"inputs are: {', '.join(map(str, self.inputs))}"
        return EngineInputError(f"{self.file}: inputs {'; '.join(facts)}", remedy=remedy)

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
                f"{self.file} has no output {', '.join(absent)}",
                cause="a scan feeds output next_<name> into input <name>",
                remedy=f"carry only inputs that have one; outputs are: {', '.join(map(str, self.outputs))}",
            )
        for fed in (tensor for tensor in self.inputs if tensor.name in carry):
            made = outputs[NEXT + fed.name]
            if fed.dtype != made.dtype or len(fed.shape) != len(made.shape):
                raise EngineInputError(
                    f"{self.file}: output {made} cannot feed input {fed}",
                    remedy="export the engine so that both have one dtype and shape",
                )


def lies_on_gpu(array: object) -> bool:
    """Whether it is an array in the memory of a CUDA device, of whatever package."""
    device = getattr(array, "__dlpack_device__", None)
    return int(device()[0]) in _CUDA if device else hasattr(array, "__cuda_array_interface__")


def _facts_on_gpu(tensor: Tensor, array: Any) -> tuple[object, tuple[int, ...]]:
    """Dtype (a name where NumPy has none) and shape; raises EngineInputError where it cannot be read as it lies."""
    from .cuda.views import view

    try:
        found = view(array, f"input {tensor.name}", -1)
    except (UsageError, BufferError) as error:
        fact = error.fact if isinstance(error, UsageError) else f"input {tensor.name} cannot be read: {error}"
        raise EngineInputError(fact, remedy=f"give {tensor} on the GPU, packed and detached") from error
    if not found.is_packed():
        raise EngineInputError(
            f"input {tensor.name} on the GPU has strides {found.strides} for shape {found.shape}",
            remedy="pack it first: .contiguous() in torch, cupy.ascontiguousarray in CuPy",
        )
    return found.dtype or "bfloat16", found.shape


def _dtype_error(tensor: Tensor, got: object) -> EngineInputError:
    return EngineInputError(
        f"input {tensor.name} is {got}; {tensor.dtype} is wanted",
        remedy=f"convert it: numpy.asarray(value, '{tensor.dtype}')",
    )


def _check_fit(tensor: Tensor, dtype: object, shape: tuple[int, ...], axes: dict[str, int]) -> None:
    if dtype != tensor.dtype:
        raise _dtype_error(tensor, dtype)
    fits = len(shape) == len(tensor.shape)
    for want, got in zip(tensor.shape, shape, strict=False):
        expected = axes.setdefault(want, got) if isinstance(want, str) else want
        fits = fits and expected in (None, got)
    if not fits:
        named = ", ".join(f"{axis} = {size}" for axis, size in axes.items())
        raise EngineInputError(
            f"input {tensor.name} has shape {shape}",
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
