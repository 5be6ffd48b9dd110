"""Running converted TFLite models in ONNX Runtime, and one-operator models to convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from tflite_writer import Field, Graph

from facesdk_engines.tflite import convert


def evaluate(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs for inputs in the graph's order."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def one_operator(
    kind: str,
    x: np.ndarray,
    shape: Sequence[int],
    constants: Sequence[np.ndarray] = (),
    options: Mapping[int, Field] | None = None,
) -> bytes:
    """The file of a model `y = kind(x, *constants)` with an output of `shape`."""
    graph = Graph()
    inputs = [graph.tensor("x", x.shape)]
    inputs += [graph.constant(f"c{order}", value) for order, value in enumerate(constants)]
    graph.operator(kind, inputs, graph.tensor("y", shape), options)
    return graph.file(["x"], ["y"])


def check(
    kind: str,
    x: np.ndarray,
    expected: np.ndarray,
    constants: Sequence[np.ndarray] = (),
    options: Mapping[int, Field] | None = None,
    **choices: Any,
) -> onnx.ModelProto:
    """Convert `y = kind(x, *constants)`, compare it with the expected array, and give the ONNX model."""
    choices = {"batch": "fixed", **choices}
    model = convert(one_operator(kind, x, expected.shape, constants, options), name="one", **choices)
    (result,) = evaluate(model, x.transpose(0, 3, 1, 2) if choices.get("input_layout") == "nchw" else x)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    return model


def kinds(model: onnx.ModelProto) -> list[str]:
    """The operators of a graph in order."""
    return [node.op_type for node in model.graph.node]


def ints(*values: int) -> np.ndarray:
    """A constant of 32-bit integers, as TFLite has its shapes, axes and pads."""
    return np.array(values, np.int32)
