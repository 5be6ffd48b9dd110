"""Backward operators, and what they share with their forward ones, in operators that ONNX has and runs fast.

Forward and backward rules of one layer repeat each other's expressions on purpose: the exporter merges equal nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from facesdk.errors import ConversionError

aten = torch.ops.aten
Sizes = Sequence[int]
#: operator -> function of its arguments that computes the same by other operators
Rules = dict[Any, Callable[..., Any]]


def rules() -> Rules:
    """PyTorch's own decompositions of backward operators, and ours in place of or beside them."""
    return {operator: rule for operator, rule in decomposition_table.items() if "backward" in str(operator)} | {
        aten.convolution.default: convolution,
        aten.convolution_backward.default: convolution_backward,
        aten._prelu_kernel.default: prelu,
        aten._prelu_kernel_backward.default: prelu_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.gelu.default: gelu,
        aten.gelu_backward.default: gelu_backward,
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        aten._softmax_backward_data.default: softmax_backward,
        aten.native_layer_norm_backward.default: layer_norm_backward,
        aten.native_group_norm.default: group_norm,
        aten.native_group_norm_backward.default: group_norm_backward,
        aten.sum.dim_IntList: sum_over,
        aten.slice_backward.default: slice_backward,
        aten.select_backward.default: select_backward,
    }


# -- convolutions -----------------------------------------------------------------------------------------


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes,
    transposed: bool, output_padding: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    """A transposed convolution as an ordinary one, whose kernel is a rearrangement of the same weight.

    Runtimes fold the rearrangement when they load the graph, and are faster at the ordinary convolution.  With a
    stride s, s * s convolutions of the small map make the s * s pixels that stand for one of its own.
    """
    s, reach = stride[0], [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    plain_stride = x.dim() == 4 and len({*stride}) == 1 and (s == 1 or {*dilation} == {1})
    fits = all(p <= r and (o < s - r % s or s == 1) for p, r, o in zip(padding, reach, output_padding, strict=True))
    if not (transposed and plain_stride and fits):
        return NotImplemented  # type: ignore[no-any-return]
    if s == 1:
        borders = [r - p for r, p in zip(reach, padding, strict=True)]
        return _convolved(x, _turned(weight, groups, 1), bias, borders, dilation, groups)
    kernel = _turned(weight, groups, s)
    # every phase has the bias of its channel
    bias = None if bias is None else bias[:, None].expand(-1, s * s).reshape(-1)
    phases = _convolved(x, kernel, bias, [k - 1 for k in kernel.shape[2:]], (1, 1), groups)
    picture = _interleaved(phases, s)
    for axis, (p, r, o) in enumerate(zip(padding, reach, output_padding, strict=True), 2):
        picture = picture.narrow(axis, p, (x.shape[axis] - 1) * s - 2 * p + r + o + 1)
    return picture


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Sizes | None, stride: Sizes, padding: Sizes, dilation: Sizes,
    transposed: bool, output_padding: Sizes, groups: int, wanted: Sequence[bool],
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """The gradient of the input alone: the transposed convolution, or of a transposed one the ordinary."""
    if wanted[1] or wanted[2]:
        raise ConversionError(
            "the gradient of a convolution's weights was asked for",
            cause="a step differentiates by its input; its networks must be frozen",
            remedy="call requires_grad_(False) on the networks",
        )
    if transposed:
        return _convolved(grad, weight, None, padding, dilation, groups, stride), None, None
    missing = [
        (size - 1 - d * (k - 1) + 2 * p) % s
        for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return aten.convolution.default(grad, weight, None, stride, padding, dilation, True, missing, groups), None, None


def _convolved(
    x: Tensor, kernel: Tensor, bias: Tensor | None, padding: Sizes, dilation: Sizes, groups: int, stride: Sizes = (1, 1)
) -> Tensor:
    zeros = [0] * len(padding)
    out: Tensor = aten.convolution.default(x, kernel, bias, stride, padding, dilation, False, zeros, groups)
    return out


def _turned(weight: Tensor, groups: int, s: int) -> Tensor:
    """The (groups * out * s * s, in, k / s, k / s) kernels of a transposed convolution's: (groups * in, out, k, k)."""
    inputs, outputs, height, width = weight.shape
    taps = [-(-height // s), -(-width // s)]
    if height % s or width % s:
        weight = aten.constant_pad_nd.default(weight, [0, taps[1] * s - width, 0, taps[0] * s - height])
    split = weight.reshape(groups, inputs // groups, outputs, taps[0], s, taps[1], s)
    kernels = split.permute(0, 2, 4, 6, 1, 3, 5).reshape(groups * outputs * s * s, inputs // groups, *taps)
    return kernels if taps == [1, 1] else kernels.flip(2, 3)


def _interleaved(phases: Tensor, s: int) -> Tensor:
    """(n, c, s h, s w) of (n, c * s * s, h, w); two plain transpositions, as the one that does both is slow."""
    _, channels, height, width = phases.shape
    columns = phases.reshape(-1, s, height * width).transpose(1, 2)
    rows = columns.reshape(-1, s, height, width * s).transpose(1, 2)
    return rows.reshape(-1, channels // (s * s), height * s, width * s)


# -- activations ------------------------------------------------------------------------------------------


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    return x * _prelu_slope(x, weight)


def prelu_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, None]:
    return grad * _prelu_slope(x, weight), None


def _prelu_slope(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, weight)


def threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return grad * (x > threshold).to(grad.dtype)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return NotImplemented if approximate != "none" else x * _normal_cdf(x)  # type: ignore[no-any-return]


def gelu_backward(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if approximate != "none":
        stock: Tensor = decomposition_table[aten.gelu_backward.default](grad, x, approximate)
        return stock
    density = torch.exp(-0.5 * x * x - 0.5 * math.log(2 * math.pi))
    return grad * (_normal_cdf(x) + x * density)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erf(x * math.sqrt(0.5)) + 0.5


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    gate, out = torch.sigmoid(x), silu(x)
    return grad * (gate + (out - out * gate))


def softmax_backward(grad: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    scaled = grad * out
    return scaled - out * scaled.sum(dim, keepdim=True)


# -- normalisations ---------------------------------------------------------------------------------------


def layer_norm_backward(
    grad: Tensor, x: Tensor, shape: Sizes, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, None, None]:  # fmt: skip
    axes = list(range(-len(shape), 0))
    inner = grad if weight is None else grad * weight
    sums = inner.sum(axes, keepdim=True), (inner * x).sum(axes, keepdim=True)
    slope, offset = _norm_slopes(*sums, mean, rstd, math.prod(shape))
    return inner * rstd + x * slope + offset, None, None


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, area: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    flat = x.reshape(-1, groups, channels // groups * area)
    out, mean, rstd = aten.native_layer_norm.default(flat, flat.shape[2:], None, None, eps)
    out = out.reshape(x.shape)
    if weight is not None and bias is not None:
        out = out * _per_channel(weight, x) + _per_channel(bias, x)
    return out, mean.squeeze(2), rstd.squeeze(2)


def group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, n: int, channels: int, area: int,
    groups: int, wanted: Sequence[bool],
) -> tuple[Tensor, None, None]:  # fmt: skip
    """Three numbers per channel, from sums over it, make the gradient of `grad` and x: the fewest passes."""
    axes, size = list(range(2, x.dim())), channels // groups
    scale = grad.new_ones(1, groups, size) if weight is None else weight.reshape(1, groups, size)
    first, second = (
        (part.sum(axes).reshape(-1, groups, size) * scale).sum(2, keepdim=True) for part in (grad, grad * x)
    )
    mean, rstd = mean[:, :, None], rstd[:, :, None]
    slope, offset = _norm_slopes(first, second, mean, rstd, size * area)
    factors = [(rstd * scale).reshape(-1, channels)]
    factors += [part.expand(-1, -1, size).reshape(-1, channels) for part in (slope, offset)]
    a, b, c = (factor.reshape(-1, channels, *[1] * len(axes)) for factor in factors)
    return grad * a + x * b + c, None, None


def _norm_slopes(first: Tensor, second: Tensor, mean: Tensor, rstd: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """b, c of a normalisation's gradient rstd * g + b * x + c, of the sums of g and of g * x over `count` values."""
    slope = (mean * first - second) * rstd**3 / count
    return slope, -(rstd * first / count + slope * mean)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


def sum_over(x: Tensor, dim: Sizes | None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """A sum along the axes next to the batch as a product with ones.

    With one row, ONNX Runtime takes that row's axis for the leading one and adds in another order than with several.
    """
    axes = sorted(axis % x.dim() for axis in dim or ())
    if axes != list(range(1, 1 + len(axes))) or len(axes) in (0, x.dim() - 1) or dtype not in (None, x.dtype):
        return NotImplemented  # type: ignore[no-any-return]
    rest = x.shape[1 + len(axes) :]
    flat = x.reshape(-1, math.prod(x.shape[1 : 1 + len(axes)]), math.prod(rest))
    total = torch.bmm(x.new_ones(1, 1, 1).expand(flat.shape[0], 1, flat.shape[1]), flat)
    return total.reshape(-1, *([1] * len(axes) if keepdim else []), *rest)


# -- parts of tensors -------------------------------------------------------------------------------------


def slice_backward(grad: Tensor, sizes: Sizes, dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros around `grad`: the stock rule writes into a tensor of zeros, which in ONNX is a scatter."""
    if step != 1:
        return NotImplemented  # type: ignore[no-any-return]
    start = min(max(start + sizes[dim] if start < 0 else start, 0), sizes[dim])
    return _zeros_around(grad, dim, start, sizes[dim])


def select_backward(grad: Tensor, sizes: Sizes, dim: int, index: int) -> Tensor:
    return _zeros_around(grad.unsqueeze(dim), dim, index % sizes[dim], sizes[dim])


def _zeros_around(grad: Tensor, dim: int, start: int, size: int) -> Tensor:
    behind = grad.dim() - 1 - dim % grad.dim()
    pads = [0, 0] * behind + [start, size - start - grad.shape[dim]]
    out: Tensor = aten.constant_pad_nd.default(grad, pads)
    return out
