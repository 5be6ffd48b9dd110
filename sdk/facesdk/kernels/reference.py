"""What the attention kernels compute, in NumPy: float64 inside; and how far from it rounding may take them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .operands import Operands

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Element = Literal["fp16", "bf16", "fp32"]

#: half the distance from 1 to the next number
UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 2.0**-24}
#: half the distance between the least numbers
TINY = {"fp16": 2.0**-25, "bf16": 2.0**-134, "fp32": 2.0**-150}
# relative error of ex2.approx.ftz.f32 (PTX ISA)
_EXP2 = 2.0**-22
# the fewest keys that a kernel takes at a time
_TILE = 32
# rows of queries in one product: 1024 x 4096 scores in float64 are 32 MiB
_ROWS = 1024


def attend(x: Operands[Array], scale: float) -> Floats:
    """softmax(scale (q + bias) k^T) v + weight2 softmax(scale (q + bias) k2^T) v2, (batch, queries, heads, dim)."""
    out = np.zeros(x.q.shape)
    for at, q, k, v, allowed, weight in _parts(x):
        out[at] += weight * (_weights(scale * q @ k.T, allowed) @ v)
    return out


def error_bound(x: Operands[Array], scale: float, element: Element, step: float = UNIT["fp32"]) -> Floats:
    """How far each output of a kernel may lie from `attend` of the same arrays; (batch, queries, heads, dim).

    step  relative error with which a matrix instruction adds 16 products to a sum; by default one rounding to fp32.
    Rounding analysis to first order: docs/kernels.md derives it.
    """
    unit, tiny, fp32 = UNIT[element], TINY[element], UNIT["fp32"]
    steps, biased, out = math.ceil(x.q.shape[-1] / 16), x.query_bias is not None, np.zeros(x.q.shape)
    for at, q, k, v, allowed, weight in _parts(x):
        tiles = math.ceil(len(k) / _TILE)
        # of the exponents: what q k^T is off by, then the scale, the shift by the row's maximum and exp2
        score = scale * (np.abs(q) @ np.abs(k).T).max(1, keepdims=True)
        exponent = score * (steps * step + (6 + 2 * tiles) * fp32) + (1 + tiles) * _EXP2
        if biased:
            exponent += score * unit + scale * tiny * np.abs(k).sum(1).max()
        # of the weighted mean: weights narrowed, then products and the weights' total summed up
        mean = unit + len(k) / 16 * step + (len(k) / 4 + 2 * tiles + 8) * fp32
        likely = _weights(scale * q @ k.T, allowed) @ np.abs(v)
        out[at] += abs(weight) * ((np.expm1(2 * exponent) + mean) * likely + tiny * np.abs(v).sum(0))
    return out * (1 + unit) + unit * np.abs(attend(x, scale)) + tiny


def _parts(x: Operands[Array]) -> Iterator[tuple[Any, Floats, Floats, Floats, Array | None, float]]:
    """(Index into the output, q with bias, k, v, allowed, weight) per set, sample, head and block of queries."""
    sets = [(x.k, x.v, x.subject)] + ([(x.k2, x.v2, x.subject2)] if x.k2 is not None and x.v2 is not None else [])
    batch, queries, heads, _ = x.q.shape
    for second, (k, v, subject) in enumerate(sets):
        for b, h, start in np.ndindex(batch, heads, math.ceil(queries / _ROWS)):
            rows = slice(start * _ROWS, (start + 1) * _ROWS)
            q = x.q[b, rows, h].astype(np.float64)
            if x.query_bias is not None:
                q += x.query_bias[h]
            allowed = None
            if subject is not None and x.region is not None:
                allowed = (subject[b] == 0) | (subject[b] == x.region[b, rows, None])
            weight = 1.0 if not second or x.weight2 is None else float(x.weight2[b])
            yield (b, rows, h), q, k[b, :, h].astype(np.float64), v[b, :, h].astype(np.float64), allowed, weight


def _weights(scores: Floats, allowed: Array | None) -> Floats:
    """Softmax over the allowed keys of each row; zeros where there is none."""
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    top = scores.max(1, keepdims=True)
    weights: Floats = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    return weights
