"""`attention`: NumPy arrays are computed by the reference, arrays on a GPU by the kernel library."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..cuda import bfloat16
from ..errors import UsageError, one_of
from .launch import address_of, launch
from .library import Library, load
from .operands import ELEMENTS, Operands, check_together, sizes_of
from .reference import Array, attend

_STORED = {"fp32": np.float32, "uint8": np.uint8}


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    second: tuple[Any, Any] | None = None,
    weight2: Any = None,
    region: Any = None,
    subject: Any = None,
    subject2: Any = None,
    query_bias: Any = None,
    scale: float | None = None,
    dtype: Literal["bf16"] | None = None,
    out: Any = None,
    stream: Any = None,
    kernels: Library | None = None,
) -> Any:
    """softmax(scale (q + query_bias) k^T) v + weight2 softmax(scale (q + query_bias) k2^T) v2, as `out` or like q.

    q, out     (batch, queries, heads, dim); k, v, and `second` = (k2, v2), have rows of their own.  scale: dim ** -0.5.
    weight2    (batch,) float32; without it 1.   query_bias  (heads, dim).
    region     (batch, queries) uint8, with subject (batch, keys) or subject2 (batch, keys2): a query attends the keys
               whose subject is 0 or its region; where there is none, that set adds 0.
    dtype      of NumPy arrays: "bf16" rounds to it what goes in and comes out, in float32.
    stream     of GPU arrays: a torch or CuPy stream or its address.   kernels  what `load` gives, by default.
    Raises UsageError; for GPU arrays also MissingDependency, ProviderUnavailable, EngineError.
    """
    k2, v2 = second if second is not None else (None, None)
    operands = Operands(q, k, v, k2, v2, query_bias, weight2, region, subject, subject2)
    check_together(operands)
    if scale is not None and not 0 < scale < float("inf"):
        raise UsageError(f"scale is {scale}", remedy="give a positive number; dim ** -0.5 is the default")
    if _on_host({**operands.given(), **({} if out is None else {"out": out})}):
        return _compute(operands, scale, dtype, out)
    if dtype is not None:
        raise UsageError(f"dtype is {dtype!r}", remedy="leave it out: arrays on a GPU have their own")
    return launch(operands, scale, out, address_of(stream), kernels or load())


def _on_host(named: dict[str, Any]) -> bool:
    """Whether all are NumPy arrays.  Raises UsageError where only some are."""
    host = [name for name, array in named.items() if isinstance(array, np.ndarray)]
    rest = [name for name in named if name not in host]
    if host and rest:
        raise UsageError(
            f"{', '.join(host)}: NumPy; {', '.join(rest)}: not", remedy="put all arrays on the host or all on the GPU"
        )
    return bool(host)


def _compute(x: Operands[Array], scale: float | None, dtype: str | None, out: Array | None) -> Array:
    if dtype not in (None, "bf16"):
        raise one_of("dtype", dtype, ("bf16",))
    named = {**x.given(), **({} if out is None else {"out": out})}
    sizes = sizes_of({name: array.shape for name, array in named.items()})
    _check_dtypes(named, dtype)
    if dtype:
        x = Operands(**{n: a if n in ELEMENTS else bfloat16.rounded(a) for n, a in x.given().items()})
    exact = attend(x, sizes["dim"] ** -0.5 if scale is None else scale)
    result = bfloat16.rounded(exact) if dtype else exact.astype(x.q.dtype)
    if out is None:
        return result
    out[...] = result
    return out


def _check_dtypes(named: dict[str, Array], dtype: str | None) -> None:
    element = named["q"].dtype
    if element != np.float32 and (dtype or element != np.float16):
        raise UsageError(f"q is {element}", remedy="give float16 or float32; for dtype='bf16', float32")
    for name, array in named.items():
        want = _STORED[ELEMENTS[name]] if name in ELEMENTS else element
        if array.dtype != want:
            raise UsageError(f"{name} is {array.dtype}, not {np.dtype(want)}", remedy="convert it with .astype(...)")
