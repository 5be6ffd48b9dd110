"""One torch module -> one engine: traced to ONNX, held against torch on recorded inputs, written with its card."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import ConversionError, ToleranceExceeded
from facesdk.plans.profiles import Sizes
from facesdk.verify import Deviation, deviation
from facesdk_engines.forms import forms as device_forms
from facesdk_engines.forms import has_forms
from facesdk_engines.precision_islands import Islands
from facesdk_engines.winograd import Winograd, winograd_weights, with_winograd, write_matrices
from facesdk_engines.writing import write_engine

OPSET = 18
#: largest deviation from torch, in standard deviations of the output, with which an engine is written
TOLERANCE = 1e-3
#: bytes of weights from which on they stand in a file of their own; a protobuf ends at 2 GiB
LARGE = 1 << 30
_ALIGNMENT = 1 << 16  # what Windows maps files by

Axes = Mapping[int, str]
Free = Axes | Mapping[str, Axes]


@dataclasses.dataclass(frozen=True)
class Part:
    """One engine of a bundle, before it is traced.

    inputs      name -> example tensor, in the order of `forward`; the engine is checked on them.
    outputs     names of what `forward` returns, in order.
    card        its meanings of inputs and outputs, its licence if not the recipe's, what else is not known here.
    free        axis -> name: these axes of every input are free, and equal wherever a name recurs; "name + 2" is an
                axis two longer.  Input -> such a table: inputs that differ in this; one without has no free axes.
    sizes       free axis -> smallest, best and largest size that TensorRT plans are built for; one that is not named
                has those that the example leads to, see facesdk.plans.profiles.
    reference   what the engine is held against, where `module` is another form of it.
    tolerances  output -> its limit, where TOLERANCE is not it.
    files       names of the recipe's files that it is made of; empty: all.
    constants   tables of the bundle that come with this engine.
    half        whether it has an fp16 form.   islands  what of it stays fp32 there.
    winograd    form for processors -> how it uses Winograd's convolutions; "cpu", "openvino-fp32".
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    card: Card
    free: Free = dataclasses.field(default_factory=lambda: {0: "batch"})
    sizes: Mapping[str, Sizes] = dataclasses.field(default_factory=dict)
    reference: nn.Module | None = None
    tolerances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    constants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    half: bool = True
    islands: Islands = dataclasses.field(default_factory=Islands)
    winograd: Mapping[str, Winograd] = dataclasses.field(default_factory=dict)


def write_part(part: Part, path: Path) -> tuple[tuple[Deviation, ...], dict[str, str]]:
    """The deviations from torch, one per output, and the files of the engine's forms: "default" or device -> name.

    A graph with attention nodes has a form for each runtime that wants its own, and one with Winograd's convolutions
    those for processors; such a graph, and any with large weights, has them in "<file>.data", once for all forms.
    Every form is held against torch, and its deviations stand in its card.  Raises ToleranceExceeded, and then writes
    nothing.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        folder = Path(scratch)
        traced = folder / path.name
        expected = _expected(part)
        trace(part.module, part.inputs, part.outputs, traced, part.free, bool(part.winograd))
        model = onnx.load(traced, load_external_data=False)
        traced.unlink()
        files, found = {}, {}
        for name, form in _forms(part, model, traced).items():
            files[name] = path.name if name == "default" else path.with_suffix(f".{name}.onnx").name
            found[name] = _write_form(part, expected, form, folder / files[name])
        for written in folder.iterdir():
            written.replace(path.parent / written.name)
    return found["default"], files


def _forms(part: Part, model: onnx.ModelProto, path: Path) -> dict[str, onnx.ModelProto]:
    """The graph in each form, after writing the weights that some of them need beside `path`."""
    forms = device_forms(model)
    chosen = {name: winograd_weights(model, each.limits) for name, each in part.winograd.items()}
    chosen = {name: weights for name, weights in chosen.items() if weights}
    if chosen:
        every = list(dict.fromkeys(weight for weights in chosen.values() for weight in weights))
        tensors = write_matrices(model, every, path.with_suffix(".winograd.data"))
    for name, weights in chosen.items():
        # OpenVINO's plain form stays for bf16, in which the transforms would lose digits
        base = forms["default"] if name == "cpu" else forms.get("openvino", model)
        of_form = {weight: tensors[weight] for weight in weights}
        forms[name] = with_winograd(base, of_form, bands=part.winograd[name].bands, spread=name != "cpu")
    return forms


def _write_form(part: Part, expected: tuple[Tensor, ...], model: onnx.ModelProto, path: Path) -> tuple[Deviation, ...]:
    """The deviations of one form after writing it, beside its weights."""
    shapes = {name: tuple(tensor.shape) for name, tensor in part.inputs.items()}
    card = dataclasses.replace(part.card, example_shapes=shapes)
    write_engine(path, model, card)
    deviations = _compare(part, expected, path)
    errors = {each.output: each.max_in_std for each in deviations}
    write_engine(path, model, dataclasses.replace(card, deviation=errors))
    return deviations


def _expected(part: Part) -> tuple[Tensor, ...]:
    reference = part.module if part.reference is None else part.reference
    with torch.no_grad():  # and not inference mode, in which a reference could not differentiate
        expected = reference.eval()(*part.inputs.values())
    return expected if isinstance(expected, tuple) else (expected,)


# -- from torch to a file ---------------------------------------------------------------------------------


def trace(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path, free: Free,
    shared: bool = False,
) -> None:  # fmt: skip
    """Write the ONNX graph of a module in evaluation mode; inputs, outputs and free axes as in `Part`.

    Attention is left as FusedAttention nodes, for `facesdk_engines.attention` to rewrite.  The weights of a graph with
    such nodes, large ones and those that are to be shared go into "<path>.data".  Raises ConversionError where an
    axis that should be free came out fixed.
    """
    axes = {name: _free_axes(name, free) for name in inputs}
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(), tuple(inputs.values()), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=list(outputs), dynamic_shapes=_dynamic_shapes(module, axes),
        )  # fmt: skip
        _check_free(program, axes)
        _save(program, path, shared)


def _free_axes(name: str, free: Free) -> Axes:
    per_input = {key: axes for key, axes in free.items() if isinstance(axes, Mapping)}
    return per_input.get(name, {}) if per_input else free  # type: ignore[return-value]


def _dynamic_shapes(module: nn.Module, axes: Mapping[str, Axes]) -> tuple[Any, ...]:
    """What torch.export wants: per argument of `forward` a table, and a tuple of tables for `*arguments`."""
    tables = [{axis: _size(name) for axis, name in each.items()} for each in axes.values()]
    arguments = inspect.signature(module.forward).bind(*tables).arguments
    return tuple(arguments.values())


def _size(name: str) -> Any:
    name, _, more = name.partition(" + ")
    size = torch.export.Dim(name, min=1, max=1 << 15)
    return size + int(more) if more else size


def _check_free(program: torch.onnx.ONNXProgram, axes: Mapping[str, Axes]) -> None:
    # torch's exporter falls back to fixed sizes without a word where it cannot keep an axis free
    for value in program.model.graph.inputs:
        sizes = {name: value.shape[axis] for axis, name in axes[value.name].items()}
        fixed = [f"{name} at {size}" for name, size in sizes.items() if isinstance(size, int)]
        if fixed:
            raise ConversionError(
                f"input {value.name} has fixed axes: {', '.join(fixed)}",
                cause="the module's code needs that one size, or the example has the same size on another axis",
                remedy="give an example whose free sizes differ from all others, and write the module for any size",
            )


def _save(program: torch.onnx.ONNXProgram, path: Path, shared: bool) -> None:
    """Write a graph without what the exporter notes about its origin, such as paths of this machine."""
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    weights = [value.const_value for value in model.graph.initializers.values()]
    shared = shared or has_forms(model.graph)
    if shared or sum(each.nbytes for each in weights if each is not None) > LARGE:
        # one tensor after the other, straight from torch's memory; aligned, so that runtimes can map the file
        onnx_ir.save(model, path, external_data=f"{path.name}.data", alignment=_ALIGNMENT)
    else:
        onnx_ir.save(model, path)


# -- against torch ----------------------------------------------------------------------------------------


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
