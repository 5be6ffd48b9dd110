"""Element-wise operators, PReLU in both forms, half-precision and sparse weights, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_runner import check, evaluate, ints, kinds, one_operator
from tflite_writer import Graph

from facesdk.errors import ConversionError, UnsupportedOperator
from facesdk_engines.tflite import convert

SLOPES = np.array([-1.5, -0.2, 0.0, 0.3, 1.0, 1.7, 4.0, 0.9], "f4")
CONV = {0: 0, 1: 1, 2: 1}
DEPTHWISE = {0: 0, 1: 1, 2: 1, 3: 1}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("f4")


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("RELU", lambda v: np.maximum(v, 0)),
        ("RELU6", lambda v: v.clip(0, 6)),
        ("LOGISTIC", lambda v: 1 / (1 + np.exp(-v))),
        ("TANH", np.tanh),
        ("NEG", np.negative),
        ("SQRT", np.sqrt),
        ("RSQRT", lambda v: 1 / np.sqrt(v)),
        ("HARD_SWISH", lambda v: v * (v + 3).clip(0, 6) / 6),
    ],
)
def test_unary(kind, function):
    x = normal(1, 3, 4, 2) * 4
    x = np.abs(x) + 0.1 if "SQRT" in kind else x
    check(kind, x, function(x))


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("ADD", np.add),
        ("SUB", np.subtract),
        ("MUL", np.multiply),
        ("DIV", np.divide),
        ("SQUARED_DIFFERENCE", lambda a, b: (a - b) ** 2),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 5, 3), (1, 1, 1, 3), (5, 1)])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_binary_with_a_constant(kind, function, shape, layout):
    x, constant = normal(1, 4, 5, 3), np.abs(normal(*shape)) + np.float32(0.5)
    check(kind, x, function(x, constant), (constant,), {}, input_layout=layout)


def test_binary_keeps_the_order_of_a_constant_on_the_left():
    graph, constant = Graph(), normal(3)
    left, right = graph.constant("c", constant), graph.tensor("x", (1, 3))
    graph.operator("SUB", [left, right], graph.tensor("y", (1, 3)), {0: 1})
    x = normal(1, 3)
    (result,) = evaluate(convert(graph.file(["x"], ["y"]), name="sub"), x)
    np.testing.assert_allclose(result, np.maximum(constant - x, 0), rtol=1e-6)


def prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.where(x < 0, slope * x, x)


@pytest.mark.parametrize("form", ["prelu", "convolutions"])
@pytest.mark.parametrize("slope", [SLOPES.reshape(1, 1, 8), SLOPES, np.float32([[[0.25]]])], ids=["11c", "c", "scalar"])
def test_prelu(form, slope):
    x = normal(2, 4, 5, 8) * 3
    model = check("PRELU", x, prelu(x, slope), (slope,), prelu=form, batch="free")
    assert ("PRelu" in kinds(model)) == (form == "prelu")


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("form", ["prelu", "convolutions"])
def test_prelu_between_convolutions(channels, form):
    """Narrow layers are split by sign, which changes the weights on both sides; wide ones are not."""
    graph, slope = Graph(), np.tile(SLOPES, channels // 8)
    first, second, last = normal(channels, 1, 1, 6), normal(1, 3, 3, channels), normal(5, 1, 1, channels)
    biases = [normal(channels), normal(channels) + 1, normal(5)]
    graph.tensor("x", (1, 6, 6, 6))
    for name, value in {"w0": first, "s": slope, "w1": second, "w2": last}.items():
        graph.constant(name, value)
    for order, bias in enumerate(biases):
        graph.constant(f"b{order}", bias)
    graph.operator("CONV_2D", ["x", "w0", "b0"], graph.tensor("t0", (1, 6, 6, channels)), CONV)
    graph.operator("PRELU", ["t0", "s"], graph.tensor("t1", (1, 6, 6, channels)))
    graph.operator("DEPTHWISE_CONV_2D", ["t1", "w1", "b1"], graph.tensor("t2", (1, 6, 6, channels)), DEPTHWISE)
    graph.operator("CONV_2D", ["t2", "w2", "b2"], graph.tensor("y", (1, 6, 6, 5)), CONV)
    model = convert(graph.file(["x"], ["y"]), name="block", prelu=form)

    x = normal(1, 6, 6, 6)
    hidden = np.pad(prelu(x @ first[:, 0, 0].T + biases[0], slope), [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(hidden, (3, 3), (1, 2))
    expected = (np.einsum("bijchw,hwc->bijc", windows, second[0]) + biases[1]) @ last[:, 0, 0].T + biases[2]
    (result,) = evaluate(model, x)
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
    assert kinds(model).count("Conv") == (5 if (form, channels) == ("convolutions", 16) else 3)


def test_spatial_prelu_is_refused_by_name():
    x = normal(1, 4, 5, 2)
    with pytest.raises(UnsupportedOperator, match=r"PRELU \(tensor 'y'\)"):
        convert(one_operator("PRELU", x, x.shape, (normal(4, 5, 2),)), name="x")


def weights_through(kind: str, add_weights, weight: np.ndarray) -> None:
    """Check conv(x, kind(w)) with the weights that `add_weights` puts into the graph."""
    graph = Graph()
    graph.tensor("x", (1, 4, 4, weight.shape[3]))
    add_weights(graph)
    graph.operator(kind, ["stored"], graph.tensor("weight", weight.shape))
    graph.operator("CONV_2D", ["x", "weight", ""], graph.tensor("y", (1, 4, 4, len(weight))), CONV)
    x = normal(1, 4, 4, weight.shape[3])
    (result,) = evaluate(convert(graph.file(["x"], ["y"]), name="stored"), x)
    np.testing.assert_allclose(result, x @ weight[:, 0, 0].T, rtol=1e-5, atol=1e-5)


def test_half_precision_weights():
    weight = normal(4, 1, 1, 8).astype("f2")
    weights_through("DEQUANTIZE", lambda graph: graph.constant("stored", weight), weight.astype("f4"))


def test_sparse_weights_in_blocks():
    """Eight outputs by six inputs in CSR over blocks of four outputs, as TFLite's 1x1 kernels store them."""
    blocks = {(0, 1): normal(4, 1), (0, 4): normal(4, 1) + 1, (1, 0): normal(4, 1) - 1}
    weight = np.zeros((8, 1, 1, 6), "f4")
    for (row, column), block in blocks.items():
        weight[4 * row : 4 * row + 4, 0, 0, column] = block[:, 0]
    one = {1: 1}
    csr = {0: 1, 2: 1, 3: {0: ints(0, 2, 3)}, 4: 3, 5: {0: np.array([1, 4, 0], np.uint8)}}
    dims = [{1: 2}, one, one, csr, {1: 4}]
    sparsity = {0: ints(0, 1, 2, 3, 4), 1: ints(0), 2: dims}
    values = np.concatenate([block[:, 0] for block in blocks.values()])
    for kind, stored in (("DENSIFY", values), ("DEQUANTIZE", values.astype("f2"))):
        expected = weight.astype("f2").astype("f4") if kind == "DEQUANTIZE" else weight
        weights_through(kind, lambda g, v=stored: g.constant("stored", v, weight.shape, sparsity=sparsity), expected)


def test_sparse_weights_that_do_not_fit_are_refused():
    sparsity = {0: ints(0, 1), 1: ints(), 2: [{1: 2}, {0: 1, 2: 1, 3: {0: ints(0, 1, 2)}, 4: 1, 5: {0: ints(0, 7)}}]}
    graph = Graph()
    graph.constant("stored", normal(2), (2, 3), sparsity=sparsity)
    with pytest.raises(ConversionError, match="sparse"):
        convert(graph.file([], []), name="x")


@pytest.mark.parametrize("kind", ["DEQUANTIZE", "CONV_2D"])
def test_quantised_weights_are_refused_by_name(kind):
    graph = Graph()
    graph.tensor("x", (1, 2, 2, 3))
    graph.constant("weight", np.ones((4, 1, 1, 3), np.int8))
    inputs = ["weight"] if kind == "DEQUANTIZE" else ["x", "weight"]
    graph.operator(kind, inputs, graph.tensor("made", (1, 2, 2, 4)), CONV)
    with pytest.raises(UnsupportedOperator, match=rf"{kind} \(tensor 'made'\)[^~]*int8"):
        convert(graph.file(["x"], ["made"]), name="x")
