"""Weights of a graph, one tensor at a time: read where they lie, halved, written into a file beside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from facesdk.errors import ToleranceExceeded

from .precision_graph import Halved

_ALIGNMENT = 1 << 16  # what Windows maps files by; smaller weights are not worth mapping


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph of a file; weights that lie beside it are not read."""
    return onnx.load(path, load_external_data=False)


def has_file(model: onnx.ModelProto) -> bool:
    """Whether weights of a graph lie beside it."""
    return any(map(uses_external_data, model.graph.initializer))


def fill(half: Halved, folder: Path) -> int:
    """How many weights became zero, after giving all their values in the graph itself; `folder` holds the originals.

    Raises ToleranceExceeded for weights beyond fp16.
    """
    flushed = 0
    for tensor in half.model.graph.initializer:
        if tensor.name in half.weights:
            values, lost = _halved(half.weights[tensor.name], folder)
            tensor.raw_data = values.tobytes()
            flushed += lost
    return flushed


def write(forms: Sequence[Halved], folder: Path, data: Path) -> int:
    """How many weights became zero, after writing those that lay beside the originals in `folder` into `data`, once.

    The forms are of one network: what they share has one place.  Raises ToleranceExceeded for weights beyond fp16.
    """
    flushed = 0
    places: dict[tuple[str, str, int], tuple[int, int]] = {}
    with data.open("wb") as file:
        for half in forms:
            for tensor in half.model.graph.initializer:
                source = half.weights.get(tensor.name, tensor)
                if not uses_external_data(source):
                    continue
                key = (*_place(source), tensor.data_type)
                if key not in places:
                    values, lost = _values(source, tensor.data_type, folder)
                    places[key] = append(file, values)
                    flushed += lost
                refer(tensor, data.name, *places[key])
            flushed += fill(_inside(half), folder)
    return flushed


def array_of(tensor: TensorProto, folder: Path) -> npt.NDArray[np.generic]:
    """The values of a weight, which may lie in a file of the folder."""
    copy = TensorProto()
    copy.CopyFrom(tensor)  # versions of onnx leave what they read in the tensor
    return numpy_helper.to_array(copy, str(folder))


def append(file: BinaryIO, values: npt.NDArray[np.generic]) -> tuple[int, int]:
    """Offset and length of the values in the file, after writing them at its end."""
    if values.nbytes >= _ALIGNMENT:
        file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    values.tofile(file)
    return offset, values.nbytes


def refer(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    """Make a weight one that lies in that file."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))


def _inside(half: Halved) -> Halved:
    """The same graph, with the weights alone that lie in it."""
    return Halved(half.model, {name: each for name, each in half.weights.items() if not uses_external_data(each)})


def _values(source: TensorProto, kind: int, folder: Path) -> tuple[npt.NDArray[np.generic], int]:
    return _halved(source, folder) if kind == TensorProto.FLOAT16 else (array_of(source, folder), 0)


def _halved(tensor: TensorProto, folder: Path) -> tuple[npt.NDArray[np.float16], int]:
    """The values in fp16, and how many of them became zero."""
    values = array_of(tensor, folder)
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    if (np.isinf(half) & np.isfinite(values)).any():
        raise ToleranceExceeded(
            f"weight {tensor.name} does not fit into fp16",
            cause=f"its largest magnitude is {np.abs(values[np.isfinite(values)]).max():.3g}, fp16 ends at 65504",
            remedy="use the fp32 engine (export without --fp16), or name the node that reads it in `islands`",
        )
    return half, int(((half == 0) & (values != 0)).sum())


def _place(tensor: TensorProto) -> tuple[str, str]:
    """The file of a tensor, and its offset there."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], entries.get("offset", "0")
