"""One torch module -> one engine: traced to ONNX, held against torch on recorded inputs, written with its card."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import ConversionError, ToleranceExceeded
from facesdk.verify import Deviation, deviation
from facesdk_engines.writing import write_engine

OPSET = 18
#: largest deviation from torch, in standard deviations of the output, with which an engine is written
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Part:
    """One engine of a bundle, before it is traced.

    inputs      name -> example tensor, in the order of `forward`; the engine is checked on them.
    outputs     names of what `forward` returns, in order.
    card        its meanings of inputs and outputs, its licence if not the recipe's, what else is not known here.
    free        axis -> name: these axes of every input are free, and equal wherever a name recurs.
    reference   what the engine is held against, where `module` is another form of it.
    tolerances  output -> its limit, where TOLERANCE is not it.
    files       names of the recipe's files that it is made of; empty: all.
    constants   tables of the bundle that come with this engine.
    half        whether it has an fp16 form.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    card: Card
    free: Mapping[int, str] = dataclasses.field(default_factory=lambda: {0: "batch"})
    reference: nn.Module | None = None
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    constants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    half: bool = True


def write_part(part: Part, path: Path) -> tuple[Deviation, ...]:
    """The deviations from torch, one per output, after writing the engine that carries them in its card.

    Raises ToleranceExceeded, and then writes nothing.
    """
    module = part.module.eval()
    with torch.no_grad():  # and not inference mode, in which a reference could not differentiate
        reference = module if part.reference is None else part.reference.eval()
        expected = reference(*part.inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced = Path(folder) / path.name
        trace(module, part.inputs, part.outputs, traced, part.free)
        deviations = _compare(part, expected, traced)
        shapes = {name: tuple(tensor.shape) for name, tensor in part.inputs.items()}
        errors = {each.output: each.max_in_std for each in deviations}
        write_engine(path, onnx.load(traced), dataclasses.replace(part.card, example_shapes=shapes, deviation=errors))
    return deviations


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path, free: Mapping[int, str]
) -> None:
    """Write the ONNX graph of a module in evaluation mode; inputs, outputs and free axes as in `Part`.

    Raises ConversionError where an axis that should be free came out fixed.
    """
    sizes = {name: torch.export.Dim(name, min=1, max=1 << 15) for name in free.values()}
    shapes = tuple({axis: sizes[name] for axis, name in free.items()} for _ in inputs) if free else None
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=list(outputs), dynamic_shapes=shapes,
        )  # fmt: skip
        _check_free(program, free)
        program.save(path)


def _check_free(program: torch.onnx.ONNXProgram, free: Mapping[int, str]) -> None:
    # torch's exporter falls back to fixed sizes without a word where it cannot keep an axis free
    for value in program.model.graph.inputs:
        fixed = [f"{name} at {value.shape[axis]}" for axis, name in free.items() if isinstance(value.shape[axis], int)]
        if fixed:
            raise ConversionError(
                f"input {value.name} has fixed axes: {', '.join(fixed)}",
                cause="the module's code needs that one size, or the example has the same size on another axis",
                remedy="give an example whose free sizes differ from all others, and write the module for any size",
            )


def _compare(part: Part, expected: tuple[Tensor, ...], path: Path) -> tuple[Deviation, ...]:
    with Engine.open(path, "cpu") as engine:
        got = engine(**{name: np.asarray(tensor) for name, tensor in part.inputs.items()})
    found = tuple(deviation(name, want.numpy(), got[name]) for name, want in zip(part.outputs, expected, strict=True))
    broken = [each for each in found if _breaks(each, part.tolerances.get(each.output, TOLERANCE))]
    if broken:
        worst = max(broken, key=lambda each: (each.nan + each.infinite, each.max_in_std))
        raise ToleranceExceeded(
            f"engine {part.card.engine} differs from torch by {worst.max_in_std:.2e} deviations in {worst.output}",
            cause=f"the limit is {part.tolerances.get(worst.output, TOLERANCE):g}; "
            f"{worst.nan} NaN, {worst.infinite} infinite values",
            remedy="export with the versions of torch and onnxruntime that `facesdk doctor` of a working machine shows",
        )
    return found


def _breaks(found: Deviation, limit: float) -> bool:
    return not found.max_in_std <= limit or found.nan + found.infinite > 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its notes on operators of packages that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
