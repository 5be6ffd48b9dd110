"""The attention kernel's arithmetic in NumPy, tile by tile and rounding by rounding; and random problems for it."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from facesdk.cuda import bfloat16
from facesdk.cuda.memory import STORAGE
from facesdk.kernels.library import DTYPES, Arguments, Tensor
from facesdk.kernels.operands import Operands
from facesdk.kernels.reference import Array

LOG2_E = np.float32(math.log2(math.e))


@dataclasses.dataclass(frozen=True)
class Emulator:
    """`Emulator(element)(operands, scale)` is what the kernel writes; each method is one step that a fault can replace.

    depth  products that one matrix instruction adds to a sum, which it then rounds to fp32.
    """

    element: str
    depth: int = 16

    def __call__(self, x: Operands[Array], scale: float) -> Array:
        factor = np.float32(scale) * LOG2_E
        q = self.biased(_by_head(x.q), x.query_bias)
        sums = self.one_set(q, _by_head(x.k), _by_head(x.v), self.allowed(x.region, x.subject), factor, np.float32(1))
        if x.k2 is not None and x.v2 is not None:
            weight = np.float32(1) if x.weight2 is None else x.weight2[:, None, None, None]
            mask = self.allowed(x.region, x.subject2)
            sums = self.one_set(q, _by_head(x.k2), _by_head(x.v2), mask, factor, weight) + sums
        return _by_head(self.narrow(sums))

    def narrow(self, values: Array) -> Array:
        """Values of the element, in float32."""
        return bfloat16.rounded(values) if self.element == "bf16" else values.astype(np.float16).astype(np.float32)

    def biased(self, q: Array, bias: Array | None) -> Array:
        return q if bias is None else self.narrow(q.astype(np.float32) + bias.astype(np.float32)[:, None])

    def allowed(self, region: Array | None, subject: Array | None) -> Array | None:
        """(batch, 1, queries, keys), True where the region rule lets a query attend a key; None without one."""
        if region is None or subject is None:
            return None
        codes = subject[:, None, None, :]
        return (codes == 0) | (codes == region[:, None, :, None])

    def tile(self, dim: int) -> int:
        """Keys whose scores are held at once."""
        return 32 if dim > 96 else 64

    def one_set(self, q: Array, k: Array, v: Array, mask: Array | None, factor: Array, weight: Array) -> Array:
        top = np.full((*q.shape[:3], 1), -np.inf, np.float32)
        total, sums = np.zeros_like(top), np.zeros(q.shape, np.float32)
        size = self.tile(q.shape[3])
        for tile in (slice(start, start + size) for start in range(0, k.shape[2], size)):
            keys = k[:, :, tile]
            scores = self.product(q, keys.swapaxes(2, 3), np.zeros((*q.shape[:3], keys.shape[2]), np.float32))
            if mask is not None:
                scores = np.where(mask[..., tile], scores, np.float32(-np.inf))
            before, top = top, np.maximum(top, scores.max(3, keepdims=True))
            weights, keep = self.weights(scores, top, factor), self.rescale(before, top, factor)
            total = total * keep + weights.sum(3, keepdims=True, dtype=np.float32)
            sums = self.product(self.narrow(weights), v[:, :, tile], sums * keep)
        return sums * np.divide(weight, total, out=np.zeros_like(total), where=total > 0)

    def weights(self, scores: Array, top: Array, factor: Array) -> Array:
        shift = np.where(np.isfinite(top), top, np.float32(0)) * factor
        exponent = scores.astype(np.float64) * factor - shift  # one multiply-add, rounded once
        return np.exp2(exponent.astype(np.float32))

    def rescale(self, before: Array, top: Array, factor: Array) -> Array:
        """What the sums so far are multiplied by, once the greatest score has grown."""
        return self.weights(before, top, factor)

    def product(self, a: Array, b: Array, sums: Array) -> Array:
        for start in range(0, b.shape[2], self.depth):
            part = slice(start, start + self.depth)
            step = a[..., part].astype(np.float64) @ b[:, :, part].astype(np.float64)
            sums = (sums + step).astype(np.float32)
        return sums


def _by_head(rows: Array) -> Array:
    """(batch, rows, heads, dim) as (batch, heads, rows, dim), and back."""
    return rows.swapaxes(1, 2)


def random_operands(
    rng: np.random.Generator, element: str, dim: int, rows: tuple[int, int, int], batch: int, heads: int, spread: float
) -> Operands[Array]:
    """Values of the element, with a second set, masks and a bias at random; rows: queries, keys, keys2 (0: none)."""

    def draw(*shape: int) -> Array:
        values = rng.normal(0, spread, shape)
        return bfloat16.rounded(values) if element == "bf16" else values.astype(np.float16)

    def in_some_layout(count: int) -> Array:
        if rng.random() < 0.5:
            return draw(batch, count, heads, dim)
        return draw(heads, batch, count + 3, dim + 8).transpose(1, 2, 0, 3)[:, 1 : count + 1, :, 8:]

    def chosen(chance: float, array: Array) -> Array | None:
        return array if rng.random() < chance else None

    queries, keys, keys2 = rows
    region = chosen(0.5, rng.integers(0, 4, (batch, queries), np.uint8))
    ruled, second = 0.7 * (region is not None), keys2 > 0
    return Operands(
        in_some_layout(queries),
        in_some_layout(keys),
        in_some_layout(keys),
        in_some_layout(keys2) if second else None,
        in_some_layout(keys2) if second else None,
        query_bias=chosen(0.3, draw(heads, dim)),
        weight2=chosen(0.7 * second, rng.normal(0, 1, batch).astype(np.float32)),
        region=region,
        subject=chosen(ruled, rng.integers(0, 4, (batch, keys), np.uint8)),
        subject2=chosen(ruled * second, rng.integers(0, 4, (batch, keys2), np.uint8)),
    )


class HostKernels:
    """What answers like the kernel library, on arrays in host memory.

    fault  called with the output that is about to be written; what it returns is written instead.
    """

    def __init__(self, fault: Callable[[Array], Array] = lambda out: out) -> None:
        self.fault, self.streams = fault, list[int]()

    def check(self, arguments: Arguments) -> None:
        """All is well: what the Python face lets through."""

    def forward(self, arguments: Arguments, stream: int = 0) -> None:
        self.streams.append(stream)
        element, operands = read_arguments(arguments)
        out = self.fault(Emulator(element)(operands, arguments.scale))
        target = _strided(arguments.out, arguments.queries, arguments, element)
        target[...] = bfloat16.to_bits(out) if element == "bf16" else out


def read_arguments(a: Arguments) -> tuple[str, Operands[Array]]:
    """What a launch would read, and the name of its element."""
    element = {number: name for name, number in DTYPES.items()}[a.dtype]

    def floats(values: Array) -> Array:
        return bfloat16.from_bits(values) if element == "bf16" else values.copy()

    rows = {"q": a.queries, "k": a.keys, "v": a.keys, "k2": a.keys2, "v2": a.keys2}
    values = {n: floats(_strided(getattr(a, n), r, a, element)) for n, r in rows.items() if getattr(a, n).data}
    if a.query_bias:
        values["query_bias"] = floats(_at(a.query_bias, (a.heads, a.dim), STORAGE[element]))
    if a.weight2:
        values["weight2"] = _at(a.weight2, (a.batch,), np.float32).copy()
    for name, size in {"region": a.queries, "subject": a.keys, "subject2": a.keys2}.items():
        if getattr(a, name):
            values[name] = _at(getattr(a, name), (a.batch, size), np.uint8).copy()
    return element, Operands(**values)


def _strided(t: Tensor, rows: int, a: Arguments, element: str) -> Array:
    span = (a.batch - 1) * t.batch + (a.heads - 1) * t.head + (rows - 1) * t.row + a.dim
    strides = [2 * step for step in (t.batch, t.row, t.head, 1)]
    flat = _at(t.data, (span,), STORAGE[element])
    return np.lib.stride_tricks.as_strided(flat, (a.batch, rows, a.heads, a.dim), strides)


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    count = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype).reshape(shape)
