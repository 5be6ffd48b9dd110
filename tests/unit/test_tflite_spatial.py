"""Convolutions, pooling, resizing and depth to space against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tflite_runner import check, ints, kinds

SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6, TANH = range(5)


def windows(x: np.ndarray, padding: int, kernel, stride, dilation=(1, 1), fill=0.0):
    """Output extents, and a function from an output position to the window (batch, kh, kw, channels) it sees."""
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == VALID:
        out = [(extent - span) // s + 1 for extent, span, s in zip(x.shape[1:3], spans, stride, strict=True)]
        before = [0, 0]
    else:
        out = [-(-extent // s) for extent, s in zip(x.shape[1:3], stride, strict=True)]
        total = [max((o - 1) * s + span - e, 0) for o, s, span, e in zip(out, stride, spans, x.shape[1:3], strict=True)]
        before = [pad // 2 for pad in total]
    wide = np.pad(x, [(0, 0), (before[0], 99), (before[1], 99), (0, 0)], constant_values=fill)

    def at(row: int, column: int) -> np.ndarray:
        top, left = row * stride[0], column * stride[1]
        return wide[:, top : top + spans[0] : dilation[0], left : left + spans[1] : dilation[1]]

    return out, at


def slide(x, padding, kernel, stride, function, dilation=(1, 1), fill=0.0):
    """The array of function(window) over all positions."""
    (height, width), at = windows(x, padding, kernel, stride, dilation, fill)
    return np.stack([np.stack([function(at(i, j)) for j in range(width)], 1) for i in range(height)], 1)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    ("padding", "stride", "dilation", "kernel"),
    [
        (SAME, (1, 1), (1, 1), (3, 3)),
        (SAME, (2, 2), (1, 1), (3, 3)),
        (SAME, (2, 2), (1, 1), (2, 2)),
        (SAME, (2, 3), (1, 1), (5, 2)),
        (SAME, (1, 1), (2, 3), (3, 3)),
        (VALID, (1, 1), (1, 1), (3, 2)),
        (VALID, (2, 1), (1, 1), (3, 3)),
        (VALID, (1, 1), (2, 2), (3, 3)),
        (SAME, (1, 1), (1, 1), (1, 1)),
    ],
)
def test_convolution(padding, stride, dilation, kernel, layout):
    rng = np.random.default_rng(0)
    x, bias = rng.normal(size=(1, 8, 11, 3)).astype("f4"), rng.normal(size=5).astype("f4")
    weight = rng.normal(size=(5, *kernel, 3)).astype("f4")
    expected = slide(x, padding, kernel, stride, lambda w: np.einsum("bhwc,ohwc->bo", w, weight) + bias, dilation)
    options = {0: padding, 1: stride[1], 2: stride[0], 3: NONE, 4: dilation[1], 5: dilation[0]}
    check("CONV_2D", x, expected, (weight, bias), options, input_layout=layout)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    ("padding", "stride", "dilation"), [(SAME, (1, 1), (1, 1)), (SAME, (2, 2), (1, 1)), (VALID, (1, 1), (2, 1))]
)
def test_depthwise_convolution(multiplier, padding, stride, dilation):
    rng = np.random.default_rng(1)
    x, bias = rng.normal(size=(1, 7, 8, 4)).astype("f4"), rng.normal(size=4 * multiplier).astype("f4")
    weight = rng.normal(size=(1, 3, 3, 4 * multiplier)).astype("f4")

    def at(window):
        return np.einsum("bhwc,hwcm->bcm", window, weight[0].reshape(3, 3, 4, multiplier)).reshape(1, -1) + bias

    expected = slide(x, padding, (3, 3), stride, at, dilation)
    options = {0: padding, 1: stride[1], 2: stride[0], 3: multiplier, 4: NONE, 5: dilation[1], 6: dilation[0]}
    check("DEPTHWISE_CONV_2D", x, expected, (weight, bias), options)


def test_grouped_convolution_without_bias():
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(1, 4, 4, 6)).astype("f4"), rng.normal(size=(4, 1, 1, 3)).astype("f4")
    halves = [np.einsum("bhwc,oc->bhwo", x[..., 3 * g : 3 * g + 3], weight[2 * g : 2 * g + 2, 0, 0]) for g in (0, 1)]
    check("CONV_2D", x, np.concatenate(halves, -1), (weight,), {0: SAME, 1: 1, 2: 1})


@pytest.mark.parametrize(
    ("code", "function"),
    [
        (RELU, lambda v: np.maximum(v, 0)),
        (RELU_N1_TO_1, lambda v: v.clip(-1, 1)),
        (RELU6, lambda v: v.clip(0, 6)),
        (TANH, np.tanh),
    ],
)
def test_fused_activations(code, function):
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(1, 3, 3, 2)).astype("f4") * 4, rng.normal(size=(4, 1, 1, 2)).astype("f4")
    expected = function(np.einsum("bhwc,oc->bhwo", x, weight[:, 0, 0]))
    check("CONV_2D", x, expected, (weight, np.zeros(4, "f4")), {0: SAME, 1: 1, 2: 1, 3: code})


def test_convolution_over_a_sequence_is_a_matrix_product():
    rng = np.random.default_rng(4)
    x, weight, bias = (rng.normal(size=s).astype("f4") for s in ((1, 1, 9, 6), (5, 1, 1, 6), (5,)))
    expected = np.maximum(x @ weight[:, 0, 0].T + bias, 0)
    model = check("CONV_2D", x, expected, (weight, bias), {0: SAME, 1: 1, 2: 1, 3: RELU})
    assert kinds(model) == ["Reshape", "Gemm", "Relu", "Reshape"]


@pytest.mark.parametrize("kind", ["MAX_POOL_2D", "AVERAGE_POOL_2D"])
@pytest.mark.parametrize(
    ("padding", "stride", "kernel"), [(SAME, (2, 2), (2, 2)), (SAME, (1, 2), (3, 3)), (VALID, (2, 1), (3, 2))]
)
def test_pool(kind, padding, stride, kernel):
    x = np.random.default_rng(5).normal(size=(1, 7, 9, 3)).astype("f4")
    function = np.nanmax if kind == "MAX_POOL_2D" else np.nanmean
    expected = slide(x, padding, kernel, stride, lambda w: function(w, axis=(1, 2)), fill=np.nan)
    check(kind, x, expected, (), {0: padding, 1: stride[1], 2: stride[0], 3: kernel[1], 4: kernel[0]})


def bilinear(x: np.ndarray, target: tuple[int, int], align: bool, half: bool) -> np.ndarray:
    """TensorFlow's bilinear resize, pixel by pixel."""
    weights = []
    for size, out in zip(x.shape[1:3], target, strict=True):
        matrix = np.zeros((out, size))
        for i in range(out):
            scale = (size - 1) / (out - 1) if align and out > 1 else size / out
            position = (i + 0.5) * scale - 0.5 if half else i * scale
            low = int(np.clip(np.floor(position), 0, size - 1))
            fraction = min(max(position - low, 0.0), 1.0)
            matrix[i, low] += 1 - fraction
            matrix[i, min(low + 1, size - 1)] += fraction
        weights.append(matrix)
    return np.einsum("ih,jw,bhwc->bijc", *weights, x).astype("f4")


@pytest.mark.parametrize(("align", "half"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("target", [(8, 10), (7, 13), (3, 4), (4, 5)])
def test_resize_bilinear(align, half, target):
    x = np.random.default_rng(6).normal(size=(1, 4, 5, 2)).astype("f4")
    options = {2: int(align), 3: int(half)}
    check("RESIZE_BILINEAR", x, bilinear(x, target, align, half), (ints(*target),), options)


def test_depth_to_space_fills_rows_of_a_block_first():
    x = np.random.default_rng(7).normal(size=(1, 2, 3, 12)).astype("f4")
    expected = np.zeros((1, 4, 6, 3), "f4")
    for i, j, row, column in itertools.product(range(2), range(3), range(2), range(2)):
        start = 3 * (2 * row + column)
        expected[0, 2 * i + row, 2 * j + column] = x[0, i, j, start : start + 3]
    check("DEPTH_TO_SPACE", x, expected, (), {0: 2})
