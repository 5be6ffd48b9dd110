"""Spatial operators: convolutions, pooling, resizing, depth to space.  All but the last work on NCHW."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .elementwise import activate
from .model import Operator
from .translation import Translation


def convolution(t: Translation, op: Operator) -> None:
    """CONV_2D: weights OHWI."""
    weight = t.weights(op, 1).transpose(0, 3, 1, 2)
    if _is_matrix_product(t, op, weight.shape):
        _matrix_product(t, op)
    else:
        group = t.shape(op.inputs[0])[3] // weight.shape[1]
        _convolution(t, op, weight, group=group, activation=3, dilation=(5, 4))


def depthwise_convolution(t: Translation, op: Operator) -> None:
    """DEPTHWISE_CONV_2D: weights 1HWO, the outputs of one input channel lie side by side as in ONNX."""
    weight = t.weights(op, 1).transpose(3, 0, 1, 2)
    _convolution(t, op, weight, group=t.shape(op.inputs[0])[3], activation=4, dilation=(6, 5))


def _convolution(
    t: Translation, op: Operator, weight: np.ndarray, group: int, activation: int, dilation: tuple[int, int]
) -> None:
    kernel, stride = weight.shape[2:], (op.option(2), op.option(1))
    dilations = [op.option(field, default=1) for field in dilation]
    inputs = [t.value(op.inputs[0], "nchw"), t.network.constant(weight, hint="weight")]
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        inputs.append(t.network.constant(t.weights(op, 2), hint="bias"))
    out = t.network.add(
        "Conv",
        *inputs,
        kernel_shape=list(kernel),
        strides=list(stride),
        dilations=dilations,
        group=group,
        pads=_pads(op, t.shape(op.inputs[0])[1:3], kernel, stride, dilations),
    )
    t.emit(op, "nchw", activate(t, op, out, activation))


def _pads(
    op: Operator, extents: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """TensorFlow's VALID (1) or SAME (0) as explicit pads; of an odd number the larger half goes to the end."""
    if op.option(0, "i8") == 1:
        return [0, 0, 0, 0]
    total = [
        max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
        for extent, k, s, d in zip(extents, kernel, stride, dilation, strict=True)
    ]
    return [pad // 2 for pad in total] + [pad - pad // 2 for pad in total]


def _is_matrix_product(t: Translation, op: Operator, weight: tuple[int, ...]) -> bool:
    """Whether a 1x1 convolution runs over a sequence (height 1) that was never an image."""
    return (
        weight[2:] == (1, 1)
        and op.option(1) == op.option(2) == 1
        and t.shape(op.inputs[0])[1] == 1
        and t.shape(op.inputs[0])[3] == weight[1]
        and t.layout(op.inputs[0]) == "native"
    )


def _matrix_product(t: Translation, op: Operator) -> None:
    inputs = [t.value(op.inputs[0], "rows"), t.network.constant(t.weights(op, 1)[:, 0, 0].T, hint="weight")]
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        inputs.append(t.network.constant(t.weights(op, 2), hint="bias"))
    t.emit(op, "rows", activate(t, op, t.network.add("Gemm", *inputs), 3))


def pool(t: Translation, op: Operator) -> None:
    """MAX_POOL_2D, AVERAGE_POOL_2D; neither counts what is padded."""
    stride, kernel = (op.option(2), op.option(1)), (op.option(4), op.option(3))
    kind = "MaxPool" if op.kind == "MAX_POOL_2D" else "AveragePool"
    out = t.network.add(
        kind,
        t.value(op.inputs[0], "nchw"),
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=_pads(op, t.shape(op.inputs[0])[1:3], kernel, stride, (1, 1)),
    )
    t.emit(op, "nchw", activate(t, op, out, 5))


def resize(t: Translation, op: Operator) -> None:
    """RESIZE_BILINEAR.  By scales: ONNX Runtime 1.31 loses `sizes` when it moves a Transpose over the node."""
    align, half = op.option(2, "bool"), op.option(3, "bool")
    mode = "align_corners" if align else "half_pixel" if half else "asymmetric"
    height, width = t.constant(op, 1).tolist()
    _, rows, columns, _ = t.shape(op.inputs[0])
    scales = t.network.constant([1, 1, _scale(rows, height), _scale(columns, width)], hint="scales")
    options = {"mode": "linear", "coordinate_transformation_mode": mode}
    t.emit(op, "nchw", t.network.add("Resize", t.value(op.inputs[0], "nchw"), "", scales, **options))


def _scale(source: int, target: int) -> float:
    """The float32 factor that makes exactly `target` of `source`: ONNX rounds the product down."""
    scale = np.float32(target / source)
    return float(scale if float(scale) * source >= target else np.nextafter(scale, np.float32(np.inf)))


def depth_to_space(t: Translation, op: Operator) -> None:
    """DEPTH_TO_SPACE.  Two reshapes around one transposition of whole pixels: a third of DepthToSpace's time."""
    _, height, width, channels = t.shape(op.inputs[0])
    block = op.option(0)
    depth = channels // block**2
    out = t.reshaped(t.value(op.inputs[0], "native"), [-1, height, width, block, block, depth])
    out = t.network.add("Transpose", out, perm=[0, 1, 3, 2, 4, 5])
    t.emit(op, "native", t.reshaped(out, [-1, height * block, width * block, depth]))
