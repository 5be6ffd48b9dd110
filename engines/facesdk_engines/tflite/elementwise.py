"""Operators that work element by element; they keep the layout of their inputs."""

from __future__ import annotations

import numpy as np

from .model import Operator
from .translation import Layout, Translation

_RELU6, _RELU_N1_TO_1 = (0.0, 6.0), (-1.0, 1.0)
_ACTIVATIONS = {1: "Relu", 4: "Tanh"}  # the schema's ActivationFunctionType, together with 0, 2 and 3
_UNARY = {
    "HARD_SWISH": "HardSwish",
    "LOGISTIC": "Sigmoid",
    "NEG": "Neg",
    "RELU": "Relu",
    "SQRT": "Sqrt",
    "TANH": "Tanh",
}


def activate(t: Translation, op: Operator, name: str, field: int) -> str:
    """The value after the activation that an option field of the operator asks for."""
    code = op.option(field, "i8")
    if code == 0:
        return name
    if code in _ACTIVATIONS:
        return t.network.add(_ACTIVATIONS[code], name)
    if code in (2, 3):
        return _clip(t, name, _RELU6 if code == 3 else _RELU_N1_TO_1)
    raise t.unsupported(op, f"its fused activation has the code {code}")


def _clip(t: Translation, name: str, limits: tuple[float, float]) -> str:
    return t.network.add("Clip", name, *(t.network.constant(limit, hint="limit") for limit in limits))


def unary(t: Translation, op: Operator) -> None:
    """Functions of one tensor."""
    layout = t.layout(op.inputs[0]) or "native"
    x = t.value(op.inputs[0], layout)
    if op.kind == "RSQRT":
        out = t.network.add("Reciprocal", t.network.add("Sqrt", x))
    elif op.kind == "RELU6":
        out = _clip(t, x, _RELU6)
    else:
        out = t.network.add(_UNARY[op.kind], x)
    t.emit(op, layout, out)


def binary(t: Translation, op: Operator) -> None:
    """ADD, SUB, MUL, DIV, SQUARED_DIFFERENCE with broadcasting."""
    t.keep_batch(op, _keeps_batch(t, op))
    layout = _common_layout(t, op)
    a, b = (t.value(index, layout) for index in op.inputs)
    if op.kind == "SQUARED_DIFFERENCE":
        difference = t.network.add("Sub", a, b)
        t.emit(op, layout, t.network.add("Mul", difference, difference))
    else:
        t.emit(op, layout, activate(t, op, t.network.add(op.kind.capitalize(), a, b), 0))


def _common_layout(t: Translation, op: Operator) -> Layout:
    computed = [index for index in op.inputs if t.array(index) is None]
    images = all(t.layout(index) == "nchw" and len(t.shape(index)) == 4 for index in computed)
    return "nchw" if computed and images else "native"


def _keeps_batch(t: Translation, op: Operator) -> bool:
    rank = len(t.shape(op.outputs[0]))
    constants = [index for index in op.inputs if t.array(index) is not None]
    return all(
        (len(t.shape(index)) < rank or t.shape(index)[0] == 1) if index in constants else len(t.shape(index)) == rank
        for index in op.inputs
    )


def prelu(t: Translation, op: Operator) -> None:
    """PRELU of an image with one slope a channel."""
    shape, slope = t.shape(op.inputs[0]), t.weights(op, 1)
    channels = shape[-1]
    if len(shape) != 4 or slope.size not in (1, channels) or slope.shape[-1:] not in ((1,), (channels,)):
        why = f"its slope of shape {slope.shape} on {shape} is not one a channel of an image"
        raise t.unsupported(op, why)
    values = np.broadcast_to(slope.reshape(-1), channels).reshape(channels, 1, 1)
    out = t.network.add("PRelu", t.value(op.inputs[0], "nchw"), t.network.constant(values, hint="slope"))
    t.emit(op, "nchw", out)


def fold(t: Translation, op: Operator) -> None:
    """DEQUANTIZE of half-precision weights and DENSIFY of sparse ones: constants that are known here already."""
    dtype = t.model.tensors[op.inputs[0]].dtype
    if dtype not in ("float16", "float32"):
        raise t.unsupported(op, f"its input is {dtype}, quantised weights are not translated")
    t.folded[op.outputs[0]] = t.constant(op, 0)
