"""Operators that move, cut, join and reduce axes, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_runner import check, evaluate, ints, one_operator
from tflite_writer import Graph

from facesdk.errors import ConversionError, UnsupportedOperator
from facesdk_engines.tflite import convert

X = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype("f4")
SEQUENCE = X.reshape(1, 12, 5)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_pad(layout):
    pads = ints(0, 0, 1, 2, 0, 1, 0, 3).reshape(4, 2)
    check("PAD", X, np.pad(X, pads), (pads,), input_layout=layout)
    check("PAD", SEQUENCE, np.pad(SEQUENCE, [(0, 0), (2, 0), (0, 1)]), (ints(0, 0, 2, 0, 0, 1).reshape(3, 2),))


def test_pad_becomes_part_of_a_convolution():
    graph = Graph()
    graph.tensor("x", X.shape)
    graph.constant("pads", ints(0, 0, 1, 1, 2, 0, 0, 0).reshape(4, 2))
    graph.constant("w", np.ones((2, 3, 3, 3), "f4"))
    graph.operator("PAD", ["x", "pads"], graph.tensor("wide", (1, 6, 7, 3)))
    graph.operator("CONV_2D", ["wide", "w"], graph.tensor("y", (1, 4, 5, 2)), {0: 1, 1: 1, 2: 1})
    model = convert(graph.file(["x"], ["y"]), name="padded")
    (result,) = evaluate(model, X)
    wide = np.pad(X, [(0, 0), (1, 1), (2, 0), (0, 0)])
    expected = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2)).sum((3, 4, 5))
    np.testing.assert_allclose(result, np.stack([expected, expected], -1), rtol=1e-5, atol=1e-5)
    assert "Pad" not in [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenation(axis, layout):
    graph = Graph()
    graph.tensor("x", X.shape)
    graph.operator("NEG", ["x"], graph.tensor("minus", X.shape))
    expected = np.concatenate([X, -X], axis)
    graph.operator("CONCATENATION", ["x", "minus"], graph.tensor("y", expected.shape), {0: axis, 1: 1})
    model = convert(graph.file(["x"], ["y"]), name="joined", input_layout=layout)
    (result,) = evaluate(model, X.transpose(0, 3, 1, 2) if layout == "nchw" else X)
    np.testing.assert_array_equal(result, np.maximum(expected, 0))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_reshape_reads_pixels_in_tflite_order(layout):
    check("RESHAPE", X, X.reshape(1, 10, 6), (ints(1, 10, 6),), input_layout=layout, batch="free")


def test_transpose():
    check("TRANSPOSE", X, X.transpose(0, 3, 2, 1), (ints(0, 3, 2, 1),), batch="free")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (3,), (-1,), (1,), (2, 3)])
@pytest.mark.parametrize(("kind", "function"), [("MEAN", np.mean), ("SUM", np.sum)])
def test_reductions(kind, function, axes, keep, layout):
    expected = function(X, axis=axes, keepdims=bool(keep))
    check(kind, X, expected, (ints(*axes),), {0: keep}, input_layout=layout)


def test_reduction_along_a_scalar_axis():
    check("MEAN", SEQUENCE, SEQUENCE.mean(1), (np.array(1, np.int32),), {0: 0})


@pytest.mark.parametrize(
    ("begin", "end", "strides", "masks", "key"),
    [
        ((0, 1, 2), (1, 9, 4), (1, 1, 1), (0, 0, 0), np.s_[:, 1:9, 2:4]),
        ((0, 1, 2), (1, 9, 4), (1, 2, 1), (4, 2, 0), np.s_[:, 1::2, :4]),
        ((0, -3, 0), (1, -1, 5), (1, 1, 2), (0, 0, 0), np.s_[:, -3:-1, ::2]),
        ((0, 9, 4), (1, 1, 0), (1, -3, -1), (0, 4, 0), np.s_[:, 9:1:-3, 4::-1]),
        ((0, 9, 4), (1, 1, 0), (1, -1, -1), (6, 6, 0), np.s_[:, ::-1, ::-1]),
        ((0, 3, 0), (1, 4, 5), (1, 1, 1), (0, 0, 2), np.s_[:, 3, :]),
        ((0, -1, -1), (1, 0, 0), (1, 1, 1), (0, 0, 6), np.s_[:, -1, -1]),
    ],
)
def test_strided_slice(begin, end, strides, masks, key):
    options = {0: masks[0], 1: masks[1], 4: masks[2]}
    check("STRIDED_SLICE", SEQUENCE, SEQUENCE[key], (ints(*begin), ints(*end), ints(*strides)), options, batch="free")


@pytest.mark.parametrize("field", [2, 3])
def test_slices_with_an_ellipsis_or_a_new_axis_are_refused_by_name(field):
    constants = (ints(0, 0, 0), ints(1, 2, 2), ints(1, 1, 1))
    with pytest.raises(UnsupportedOperator, match=r"STRIDED_SLICE \(tensor 'y'\)"):
        convert(one_operator("STRIDED_SLICE", SEQUENCE, (1, 2, 2), constants, {field: 1}), name="x")


@pytest.mark.parametrize(
    ("kind", "shape", "constants", "options"),
    [
        ("RESHAPE", (60,), (ints(60),), {}),
        ("RESHAPE", (4, 15), (ints(4, 15),), {}),
        ("TRANSPOSE", (5, 12, 1), (ints(2, 1, 0),), {}),
        ("MEAN", (12, 5), (ints(0),), {}),
        ("STRIDED_SLICE", (12, 5), (ints(0, 0, 0), ints(1, 12, 5), ints(1, 1, 1)), {4: 1}),
        ("PAD", (2, 12, 5), (ints(0, 1, 0, 0, 0, 0).reshape(3, 2),), {}),
    ],
)
def test_a_free_batch_is_refused_where_the_graph_fixes_it(kind, shape, constants, options):
    file = one_operator(kind, SEQUENCE, shape, constants, options)
    with pytest.raises(ConversionError, match=rf'fixes the batch: operator {kind}[^~]*batch="fixed"'):
        convert(file, name="x")
    (result,) = evaluate(convert(file, name="x", batch="fixed"), SEQUENCE)
    assert result.shape == shape
