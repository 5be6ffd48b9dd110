"""Operators that move, cut, join or reduce axes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .elementwise import activate
from .model import Operator
from .translation import TO_NCHW, Layout, Translation

_END, _START = np.iinfo(np.int64).max, np.iinfo(np.int64).min


def pad(t: Translation, op: Operator) -> None:
    """PAD with zeros; the pads of images are given on NCHW, where convolutions can take them over."""
    pads = t.constant(op, 1).astype(np.int64)
    t.keep_batch(op, not pads[0].any())
    layout: Layout = "nchw" if len(t.shape(op.inputs[0])) == 4 else "native"
    if layout == "nchw":
        pads = pads[list(TO_NCHW)]
    name = t.network.constant(pads.T.reshape(-1), np.int64, "pads")
    t.emit(op, layout, t.network.add("Pad", t.value(op.inputs[0], layout), name))


def concatenate(t: Translation, op: Operator) -> None:
    """CONCATENATION."""
    rank = len(t.shape(op.outputs[0]))
    axis = op.option(0) % rank
    t.keep_batch(op, axis != 0 and all(t.array(index) is None for index in op.inputs))
    layout: Layout = "nchw" if all(t.layout(index) == "nchw" for index in op.inputs) else "native"
    parts = [t.value(index, layout) for index in op.inputs]
    out = t.network.add("Concat", *parts, axis=TO_NCHW.index(axis) if layout == "nchw" else axis)
    t.emit(op, layout, activate(t, op, out, 1))


def reshape(t: Translation, op: Operator) -> None:
    """RESHAPE to the shape that the output declares."""
    source, target = t.shape(op.inputs[0]), list(t.shape(op.outputs[0]))
    t.keep_batch(op, bool(target) and source[:1] == tuple(target[:1]))
    if t.free:
        target[0] = -1
    t.emit(op, "native", t.reshaped(t.value(op.inputs[0], "native"), target))


def transpose(t: Translation, op: Operator) -> None:
    """TRANSPOSE."""
    perm = t.constant(op, 1).tolist()
    t.keep_batch(op, perm[0] == 0)
    t.emit(op, "native", t.network.add("Transpose", t.value(op.inputs[0], "native"), perm=perm))


def reduce(t: Translation, op: Operator) -> None:
    """MEAN and SUM; over an NCHW image they stay there, or leave (batch, channels) behind."""
    rank, keep = len(t.shape(op.inputs[0])), op.option(0, "bool")
    axes = sorted({int(axis) % rank for axis in np.atleast_1d(t.constant(op, 1))})
    t.keep_batch(op, 0 not in axes)
    image = t.layout(op.inputs[0]) == "nchw" and (keep or axes == [1, 2])
    layout: Layout = "nchw" if image else "native"
    if image:
        axes = sorted(TO_NCHW.index(axis) for axis in axes)
    kind = "ReduceMean" if op.kind == "MEAN" else "ReduceSum"
    name = t.network.constant([axis - rank for axis in axes], np.int64, "axes")
    out = t.network.add(kind, t.value(op.inputs[0], layout), name, keepdims=keep)
    t.emit(op, layout if keep else "native", out)


def strided_slice(t: Translation, op: Operator) -> None:
    """STRIDED_SLICE with begin, end and shrink masks."""
    if op.option(2) or op.option(3):
        raise t.unsupported(op, "its slice has an ellipsis or a new axis")
    shrink = [axis for axis in range(len(t.shape(op.inputs[0]))) if op.option(4) >> axis & 1]
    t.keep_batch(op, 0 not in shrink and _whole_batch(t, op))
    begin, end, strides = _bounds(t, op)
    bounds = (begin, end, np.arange(len(begin)), strides)
    names = [t.network.constant(bound, np.int64, "slice") for bound in bounds]
    out = t.network.add("Slice", t.value(op.inputs[0], "native"), *names)
    if shrink:
        out = t.network.add("Squeeze", out, t.network.constant(shrink, np.int64, "axes"))
    t.emit(op, "native", out)


def _whole_batch(t: Translation, op: Operator) -> bool:
    begin, end, strides = (t.constant(op, position)[0] for position in (1, 2, 3))
    starts = begin == 0 or op.option(0) & 1
    ends = end >= t.shape(op.inputs[0])[0] or op.option(1) & 1
    return bool(starts and ends and strides == 1)


def _bounds(t: Translation, op: Operator) -> tuple[npt.NDArray[np.int64], ...]:
    begin, end, strides = (t.constant(op, position).astype(np.int64) for position in (1, 2, 3))
    for axis, stride in enumerate(strides):
        forward = stride > 0
        if op.option(0) >> axis & 1:
            begin[axis] = 0 if forward else _END
        if op.option(4) >> axis & 1:
            end[axis] = begin[axis] + 1 or _END  # index -1 ends at the end, not at 0
            strides[axis] = 1
        elif op.option(1) >> axis & 1 or (axis == 0 and t.free):
            end[axis] = _END if forward else _START
    return begin, end, strides
