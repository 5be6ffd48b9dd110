"""Expanding TFLite's sparse constants: a tree of dense and compressed (CSR) levels over blocks of the tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from .flatbuffers import Table

Integers = npt.NDArray[np.int64]

_INDEX_TYPES = {1: "<i4", 2: "<u2", 3: "u1"}  # the schema's SparseIndexVector union


@dataclasses.dataclass(frozen=True)
class Level:
    """One traversal level: `size` children a node, or the CSR pair `segments` and `indices`."""

    size: int
    segments: Integers | None = None
    indices: Integers | None = None


def expand(values: npt.NDArray[Any], shape: tuple[int, ...], sparsity: Table) -> npt.NDArray[Any]:
    """The dense array of `shape` that a `SparsityParameters` table describes; absent elements are zero.

    Raises ConversionError where levels, blocks and values do not fit together.
    """
    order, block_map = sparsity.integers(0), sparsity.integers(1)
    levels = [_level(table) for table in sparsity.tables(2)]
    rank, broken = len(shape), sparsity.buffer.broken
    if len(levels) != rank + len(block_map) or sorted(order) != list(range(len(levels))):
        raise broken(f"a sparse tensor of rank {rank} has {len(levels)} levels in the order {order}")
    if any(axis not in range(rank) for axis in block_map):
        raise broken(f"a sparse tensor of rank {rank} has blocks along the axes {block_map}")
    block = np.ones(rank, np.int64)
    for axis, level in zip(block_map, levels[rank:], strict=True):
        block[axis] = level.size
    try:
        position, paths = _walk(levels, int(np.prod(shape)))
        coordinates = np.zeros((rank, len(position)), np.int64)
        for axis, path in zip(order, paths, strict=True):
            inside = axis >= rank  # the trailing levels run inside a block
            coordinates[block_map[axis - rank] if inside else axis] += path if inside else path * block[axis]
        dense = np.zeros(shape, values.dtype)
        dense[tuple(coordinates)] = values[position]
    except (IndexError, ValueError) as error:
        raise broken(f"sparse indices do not fit the tensor of shape {shape}: {error}") from error
    return dense


def _level(table: Table) -> Level:
    if table.scalar(0, "i8") == 0:
        return Level(max(table.scalar(1, "i32"), 0))
    segments, indices = _indices(table, 2), _indices(table, 4)
    return Level(0, segments, indices)


def _indices(table: Table, field: int) -> Integers:
    kind, values = table.scalar(field, "u8"), table.table(field + 1)
    if kind not in _INDEX_TYPES or values is None:
        raise table.buffer.broken("a sparse tensor lacks its index vectors")
    return values.array(0, _INDEX_TYPES[kind]).astype(np.int64)


def _walk(levels: list[Level], limit: int) -> tuple[Integers, list[Integers]]:
    """Storage position of each stored value, and its coordinate on every level."""
    position = np.zeros(1, np.int64)
    paths: list[Integers] = []
    for level in levels:
        if level.segments is None or level.indices is None:
            counts = np.full(len(position), level.size, np.int64)
            starts = position * level.size
        else:
            counts = level.segments[position + 1] - level.segments[position]
            starts = level.segments[position]
        if (counts < 0).any() or counts.sum() > limit:
            raise ValueError(f"{counts.sum()} values for {limit} elements")
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        paths = [np.repeat(path, counts) for path in paths]
        position = np.repeat(starts, counts) + within
        paths.append(within if level.indices is None else level.indices[position])
    return position, paths
