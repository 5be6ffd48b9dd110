"""From operators to nodes: which function translates which operator, and the walk over a model's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from facesdk.errors import ConversionError, FaceSDKError, UnsupportedOperator

from . import convolution, elementwise, shape
from .model import Model, Operator
from .network import Network
from .translation import TO_NCHW, Translation

TRANSLATIONS: Mapping[str, Callable[[Translation, Operator], None]] = {
    "ADD": elementwise.binary,
    "AVERAGE_POOL_2D": convolution.pool,
    "CONCATENATION": shape.concatenate,
    "CONV_2D": convolution.convolution,
    "DENSIFY": elementwise.fold,
    "DEPTHWISE_CONV_2D": convolution.depthwise_convolution,
    "DEPTH_TO_SPACE": convolution.depth_to_space,
    "DEQUANTIZE": elementwise.fold,
    "DIV": elementwise.binary,
    "HARD_SWISH": elementwise.unary,
    "LOGISTIC": elementwise.unary,
    "MAX_POOL_2D": convolution.pool,
    "MEAN": shape.reduce,
    "MUL": elementwise.binary,
    "NEG": elementwise.unary,
    "PAD": shape.pad,
    "PRELU": elementwise.prelu,
    "RELU": elementwise.unary,
    "RELU6": elementwise.unary,
    "RESHAPE": shape.reshape,
    "RESIZE_BILINEAR": convolution.resize,
    "RSQRT": elementwise.unary,
    "SQRT": elementwise.unary,
    "SQUARED_DIFFERENCE": elementwise.binary,
    "STRIDED_SLICE": shape.strided_slice,
    "SUB": elementwise.binary,
    "SUM": shape.reduce,
    "TANH": elementwise.unary,
    "TRANSPOSE": shape.transpose,
}


@contextmanager
def consistent(source: str) -> Iterator[None]:
    """Turn what NumPy and Python say about shapes and tables that contradict each other into a ConversionError."""
    try:
        yield
    except FaceSDKError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        fact, remedy = f"{source} contradicts itself", "get the file again: it is probably damaged"
        raise ConversionError(fact, cause=f"{type(error).__name__}: {error}", remedy=remedy) from error


def translate(model: Model, *, free: bool, nchw_inputs: bool, names: Mapping[int, str]) -> Network:
    """The ONNX graph of a model, operator by operator; `names` are those of its inputs and outputs by tensor."""
    _refuse_unknown(model)
    translation = Translation(model, free)
    for index in model.inputs:
        _declare_input(translation, index, names[index], nchw_inputs)
    for op in model.operators:
        _refuse_types(translation, op)
        TRANSLATIONS[op.kind](translation, op)
    for index in model.outputs:
        _declare_output(translation, index, names[index])
    return translation.network


def _refuse_unknown(model: Model) -> None:
    unknown = [op for op in model.operators if op.kind not in TRANSLATIONS]
    if unknown:
        kinds = ", ".join(sorted({op.kind for op in unknown}))
        tensor = model.tensors[unknown[0].outputs[0]].name if unknown[0].outputs else ""
        raise UnsupportedOperator(
            f"{model.source} holds operators that cannot be translated: {kinds}",
            cause=f"the first one makes the tensor {tensor!r}",
            remedy="use a model without them: only float networks of builtin operators are converted",
        )


def _refuse_types(t: Translation, op: Operator) -> None:
    """Every tensor has to be there (a bias may be left out), and every computed one of float32."""
    optional = op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and min(op.inputs[:2], default=0) >= 0
    if min(op.inputs, default=0) < 0 and not optional:
        raise t.unsupported(op, "one of its inputs is left out")
    if op.kind in ("DENSIFY", "DEQUANTIZE"):
        return
    computed = [index for index in op.inputs if index >= 0 and t.array(index) is None]
    for tensor in (t.model.tensors[index] for index in (*computed, *op.outputs)):
        if tensor.dtype != "float32":
            raise t.unsupported(op, f"tensor {tensor.name!r} is {tensor.dtype}, only float32 is computed with")


def _declare_input(t: Translation, index: int, name: str, nchw: bool) -> None:
    tensor = t.model.tensors[index]
    if tensor.dtype != "float32":
        raise ConversionError(
            f"{t.model.source}: the input {tensor.name!r} is {tensor.dtype}",
            cause="only float32 inputs are converted",
            remedy="use a float export of the model",
        )
    turned = nchw and len(tensor.shape) == 4
    t.values[index, "nchw" if turned else "native"] = name
    dims = [tensor.shape[axis] for axis in TO_NCHW] if turned else list(tensor.shape)
    t.network.inputs[name] = _batched(dims, t.free)


def _declare_output(t: Translation, index: int, name: str) -> None:
    """Let the node that computes an output carry its name; only what has a name already gets an Identity."""
    network, value = t.network, t.value(index, "native")
    node = network.producer(value)
    if node is None or value in network.outputs:
        network.nodes.append(network.make("Identity", value, output=name))
    else:
        node.output = name
        network.redirect(value, name)
    t.values[index, "native"] = name
    network.outputs[name] = _batched(list(t.shape(index)), t.free)


def _batched(dims: list[int], free: bool) -> list[int | str]:
    return ["batch", *dims[1:]] if free and dims else list(dims)
