"""The arrays of one attention call, wherever they lie: their axes, and what must fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from ..errors import UsageError

T = TypeVar("T")

_AXES = {
    "q": ("batch", "queries", "heads", "dim"),
    "k": ("batch", "keys", "heads", "dim"),
    "v": ("batch", "keys", "heads", "dim"),
    "k2": ("batch", "keys2", "heads", "dim"),
    "v2": ("batch", "keys2", "heads", "dim"),
    "out": ("batch", "queries", "heads", "dim"),
    "query_bias": ("heads", "dim"),
    "weight2": ("batch",),
    "region": ("batch", "queries"),
    "subject": ("batch", "keys"),
    "subject2": ("batch", "keys2"),
}
#: name -> element of the arrays that are not of the element of q
ELEMENTS = {"weight2": "fp32", "region": "uint8", "subject": "uint8", "subject2": "uint8"}


@dataclasses.dataclass(frozen=True, eq=False)
class Operands(Generic[T]):
    """What goes in.

    q (batch, queries, heads, dim); k, v (batch, keys, heads, dim); k2, v2 (batch, keys2, heads, dim);
    query_bias (heads, dim); weight2 (batch,); region (batch, queries); subject (batch, keys); subject2 (batch, keys2).
    """

    q: T
    k: T
    v: T
    k2: T | None = None
    v2: T | None = None
    query_bias: T | None = None
    weight2: T | None = None
    region: T | None = None
    subject: T | None = None
    subject2: T | None = None

    def given(self) -> dict[str, T]:
        """Name -> array of those that are there."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def check_together(x: Operands[Any]) -> None:
    """Raise UsageError for arguments that need one another."""
    if x.k2 is None and (x.weight2 is not None or x.subject2 is not None):
        raise UsageError("weight2 or subject2 is given without a second set", remedy="give second=(k2, v2)")
    if x.region is None and (x.subject is not None or x.subject2 is not None):
        raise UsageError("subject or subject2 is given without region", remedy="give the region of every query")


def sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Axis -> size.  Raises UsageError for the first array that does not fit the ones before it."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        known = {axis: sizes[axis] for axis in _AXES[name] if axis in sizes}
        fits = len(shape) == len(_AXES[name]) and 0 not in shape
        if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(_AXES[name], shape, strict=True)):
            where = ", ".join(f"{axis} = {size}" for axis, size in known.items())
            raise UsageError(
                f"{name} has shape {tuple(shape)}",
                remedy=f"give ({', '.join(_AXES[name])}), none of them 0" + (f", with {where}" if where else ""),
            )
    return sizes
