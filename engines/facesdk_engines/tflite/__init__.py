"""TensorFlow Lite to ONNX: float networks of builtin operators, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import onnx

from facesdk.errors import ConversionError, one_of

from .channels import align_channels
from .model import Model, load
from .operators import consistent, translate
from .prelu import prelu_as_convolutions
from .simplify import simplify

__all__ = ["convert", "load"]

_CHOICES = {"prelu": ("prelu", "convolutions"), "batch": ("free", "fixed"), "input_layout": ("nhwc", "nchw")}


def convert(
    source: str | Path | bytes,
    *,
    name: str,
    prelu: Literal["prelu", "convolutions"] = "prelu",
    batch: Literal["free", "fixed"] = "free",
    input_layout: Literal["nhwc", "nchw"] = "nhwc",
    rename: Mapping[str, str] = MappingProxyType({}),
) -> onnx.ModelProto:
    """The ONNX model (opset 18, float32) of a `.tflite` file; outputs keep TFLite's layout.

    prelu: "convolutions" is the form for ONNX Runtime on CPU, with inner channels rounded up to its blocks.
    rename: TFLite's names of inputs and outputs to those of the ONNX graph (else the same without ":0").
    Raises ModelNotFound, ConversionError (malformed file, fixed batch, unknown name), UnsupportedOperator.
    """
    for option, value in (("prelu", prelu), ("batch", batch), ("input_layout", input_layout)):
        if value not in _CHOICES[option]:
            raise one_of(option, value, _CHOICES[option])
    model = load(source)
    names = _names(model, rename)
    with consistent(model.source):
        network = translate(model, free=batch == "free", nchw_inputs=input_layout == "nchw", names=names)
        simplify(network)
        if prelu == "convolutions":
            prelu_as_convolutions(network)
            align_channels(network)
    return network.to_onnx(name, model.source)


def _names(model: Model, rename: Mapping[str, str]) -> dict[int, str]:
    """The ONNX names of the graph's inputs and outputs by tensor."""
    known = {index: model.tensors[index].name for index in (*model.inputs, *model.outputs)}
    unknown = sorted(set(rename) - set(known.values()))
    if unknown:
        remedy = f"rename some of: {', '.join(known.values())}"
        raise ConversionError(f"{model.source} has no input or output {', '.join(unknown)}", remedy=remedy)
    names = {index: rename.get(own, own.split(":")[0]) for index, own in known.items()}
    if not model.inputs or not model.outputs or len(set(names.values())) < len(names) or "" in names.values():
        raise ConversionError(
            f"{model.source}: inputs and outputs need names of their own",
            cause=f"they are {', '.join(map(repr, names.values())) or 'none'}",
            remedy="name them with `rename`",
        )
    return names
