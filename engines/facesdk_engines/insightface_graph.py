"""The graphs of insightface: told apart by their signatures, and given the signatures of engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from .pictures import take_pictures

Shape = tuple[int | None, ...]
Arrays = dict[str, npt.NDArray[Any]]

#: strides and anchors of each cell, by number of outputs: scores and boxes of every stride, some with points
_LEVELS = {6: ((8, 16, 32), 2), 9: ((8, 16, 32), 2), 10: ((8, 16, 32, 64, 128), 1), 15: ((8, 16, 32, 64, 128), 1)}
_SCRFD_WIDTHS = {"scores": 1, "boxes": 4, "points": 10}
_USUAL_SCRFD_SIZE, _LEAST_OPSET = 640, 7  # opset 7 brought the broadcasting that scaling needs


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One graph with an engine's signature, and what goes with it; `arrays` for the bundle's npz."""

    kind: str
    model: onnx.ModelProto
    constants: dict[str, Any]
    example_shapes: dict[str, tuple[int, ...]]
    arrays: Arrays = dataclasses.field(default_factory=dict)


def read_network(data: bytes, engines: Mapping[str, Any]) -> Network | None:
    """The network in an ONNX file, None for one that is not known; raises ValueError where it is damaged."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    if not model.graph.output:
        raise ValueError("it holds no graph with outputs")
    _forget_weights_as_inputs(model)
    kind = _kind(model.graph, engines)
    if kind is None:
        return None
    if (
        max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)
        < _LEAST_OPSET
    ):
        raise ValueError(f"its operator set is older than {_LEAST_OPSET}")
    make = {"scrfd": _scrfd, "inswapper": _inswapper}.get(kind, _of_pictures)
    return make(kind, model, engines[kind])


# -- which network it is --------------------------------------------------------------------------------------


def _kind(graph: onnx.GraphProto, engines: Mapping[str, Any]) -> str | None:
    """The engine whose signature the graph has."""
    inputs, outputs = ([_shape(value) for value in values] for values in (graph.input, graph.output))
    if len(inputs) == 2:
        return "inswapper" if _is_inswapper(graph) else None
    if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][0] not in (None, 1) or inputs[0][1] != 3:
        return None
    if len(outputs) in engines["scrfd"]["outputs"]:
        return "scrfd" if _is_scrfd(outputs) else None
    for kind, facts in engines.items():
        if "size" in facts and len(outputs) == 1 and inputs[0][2:] == (facts["size"],) * 2 and len(outputs[0]) == 2:
            width = facts.get("width", outputs[0][1])
            if width is not None and outputs[0][1] == width:
                return kind
    return None


def _is_scrfd(outputs: list[Shape]) -> bool:
    widths = [width for width in _SCRFD_WIDTHS.values() for _ in _LEVELS[len(outputs)][0]]
    return all(shape and shape[-1] in (None, width) for shape, width in zip(outputs, widths, strict=False))


def _is_inswapper(graph: onnx.GraphProto) -> bool:
    shapes = {value.name: _shape(value) for value in graph.input}
    target, source = shapes.get("target", ()), shapes.get("source", ())
    square = len(target) == 4 and target[1] == 3 and target[2] == target[3] is not None
    return square and len(source) == 2 and len(graph.output) == 1


def _shape(value: onnx.ValueInfoProto) -> Shape:
    """Sizes; None for a free axis, which some exporters write as 0 or -1."""
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in value.type.tensor_type.shape.dim)


# -- the engine's signature -----------------------------------------------------------------------------------


def _of_pictures(kind: str, model: onnx.ModelProto, facts: Mapping[str, Any]) -> Network:
    """A network of one picture and one output, made to take uint8 RGB."""
    mean, std = (0.0, 1.0) if _scales_itself(model.graph, kind) else (facts["mean"], facts["std"])
    (output,), size = facts["gives"], facts["size"]
    _rename(model.graph, {model.graph.input[0].name: "image", model.graph.output[0].name: output})
    batch = _shape(model.graph.input[0])[0] or "n"
    for value in (model.graph.input[0], model.graph.output[0]):  # outputs often state 1 where the input is free
        _set_axes(value, [batch, *_shape(value)[1:]])
    take_pictures(model, size, 1 / std, -mean / std)
    constants = {"size": size, "mean": mean, "std": std, **facts.get("constants", {})}
    return Network(kind, model, constants, {"image": (1, size, size, 3)})


def _scrfd(kind: str, model: onnx.ModelProto, facts: Mapping[str, Any]) -> Network:
    """SCRFD keeps its input, which `facesdk.annotation.scrfd.prepare` makes; its outputs get names."""
    graph, count = model.graph, len(model.graph.output)
    strides, anchors = _LEVELS[count]
    names = [f"{what}_{stride}" for what in _SCRFD_WIDTHS for stride in strides][:count]
    _rename(graph, {graph.input[0].name: "image", **dict(zip((o.name for o in graph.output), names, strict=True))})
    height, width = _shape(graph.input[0])[2:]
    _set_axes(graph.input[0], [1, 3, height or "height", width or "width"])
    for value in graph.output:  # files state the cells of one size of picture where any goes
        *cells, last = _shape(value)
        _set_axes(value, [*(f"{value.name}_{axis}" for axis in range(len(cells))), last or f"{value.name}_last"])
    size = height if height is not None and height == width else _USUAL_SCRFD_SIZE
    levels = {"strides": list(strides), "anchors_per_cell": anchors, "points": count == 3 * len(strides)}
    constants = {"size": size, **levels, "mean": facts["mean"], "std": facts["std"], **facts["constants"]}
    return Network(kind, model, constants, {"image": (1, 3, height or size, width or size)})


def _inswapper(kind: str, model: onnx.ModelProto, facts: Mapping[str, Any]) -> Network:
    """The matrix from ArcFace's space to the generator's is the last weight of the file."""
    graph = model.graph
    _rename(graph, {graph.output[0].name: "image"})
    shapes = {value.name: _shape(value) for value in graph.input}
    size, width = shapes["target"][2] or 0, shapes["source"][1]  # `_is_inswapper` saw that the size is stated
    emap = numpy_helper.to_array(graph.initializer[-1]) if graph.initializer else None
    if emap is None or emap.ndim != 2 or width not in (None, emap.shape[1]):
        raise ValueError("its last weight is not the matrix from identities to the source's space")
    if not any(graph.initializer[-1].name in node.input for node in graph.node):
        del graph.initializer[-1]
    shape = (1, 3, size, size)
    constants = {"size": size, "mean": facts["mean"], "std": facts["std"], **facts["constants"]}
    return Network(kind, model, constants, {"target": shape, "source": (1, emap.shape[1])}, {"emap": emap})


def _set_axes(value: onnx.ValueInfoProto, axes: Sequence[int | str | None]) -> None:
    del value.type.tensor_type.shape.dim[:]
    for size in axes:
        axis = value.type.tensor_type.shape.dim.add()
        if isinstance(size, str):
            axis.dim_param = size
        elif size is not None:
            axis.dim_value = size


def _scales_itself(graph: onnx.GraphProto, kind: str) -> bool:
    """Whether the graph wants raw 0..255: it begins with Sub and Mul or, but for ArcFace, with a normalisation."""
    value, found = graph.input[0].name, set[str]()
    for _ in graph.node:
        readers = [node for node in graph.node if value in node.input]
        operator = readers[0].op_type if len(readers) == 1 else ""
        if operator == "BatchNormalization" and kind != "encoder":
            return True
        if operator not in ("Identity", "Sub", "Mul", "Div"):
            break
        found |= {operator} - {"Identity"}
        value = readers[0].output[0]
    return "Sub" in found and len(found) > 1


def _forget_weights_as_inputs(model: onnx.ModelProto) -> None:
    """Before IR version 4 every weight was declared as an input as well; other declarations may be wrong and go."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]
    model.ir_version = max(model.ir_version, 4)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names; one that is in the way gets a dash."""
    taken = {new: f"{new}-" for new in names.values() if new not in names}
    names = {**taken, **names}
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)
