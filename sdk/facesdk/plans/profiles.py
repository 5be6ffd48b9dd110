"""The sizes that a plan is built for: smallest, best and largest shape of every input with free axes.

A bundle says them in `[profiles.<engine>]`: `axis = [smallest, best, largest]` of an axis wherever its name recurs, or
`input = [[smallest], [best], [largest]]` of whole shapes, whose sizes hold for their named axes elsewhere too.  What is
not said comes from the card's example: an axis that counts rows, one that some input has first, is free from 1 on,
every other is as long as in the example.
"""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle import MANIFEST
from ..errors import BundleError
from ..graph import Value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Shape = tuple[int, ...]
#: smallest, best, largest
Sizes = tuple[int, int, int]
Profile = dict[str, tuple[Shape, Shape, Shape]]
#: rows that an axis may count at most where nothing is said, unless the example has more
MOST_ROWS = 4

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def said(path: Path, engine: str) -> Mapping[str, Any]:
    """The table `[profiles.<engine>]` of a TOML file, empty where it has none; raises BundleError."""
    path = path / MANIFEST if path.is_dir() else path
    table = _tables(path).get(engine, {})
    if not isinstance(table, dict):
        raise BundleError(f"{path}: profiles.{engine} is no table", remedy=_of_axis(engine, "batch"))
    return table


def named(path: Path) -> set[str]:
    """The engines that a TOML file has tables of; raises BundleError."""
    return set(_tables(path))


def _tables(path: Path) -> Mapping[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("profiles", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or str(error)
        raise BundleError(f"{path} cannot be read", cause=cause, remedy="check the file") from error
    if not isinstance(tables, dict):
        raise BundleError(f"{path}: profiles is no table", remedy=_of_axis("NAME", "batch"))
    return tables


def profile(engine: str, inputs: Sequence[Value], table: Mapping[str, Any], examples: Mapping[str, Shape]) -> Profile:
    """The shapes of every input that has free axes; raises BundleError for sizes that are missing or contradictory."""
    free = {axis for value in inputs for axis in value.shape if isinstance(axis, str)}
    if unknown := table.keys() - {value.name for value in inputs} - free:
        raise BundleError(
            f"profiles.{engine}: there is no input or free axis {', '.join(sorted(unknown))}",
            remedy=f"the inputs are: {', '.join(map(str, inputs))}",
        )
    shapes = {value.name: _checked(engine, value, table[value.name]) for value in inputs if value.name in table}
    axes = {name: _checked_sizes(engine, name, sizes) for name, sizes in table.items() if name not in shapes}
    axes = _axes(engine, inputs, axes, shapes, examples)
    result: Profile = {}
    for value in inputs:
        if any(not isinstance(size, int) for size in value.shape):
            sizes = [_size(engine, value, index, axes, shapes, examples) for index in range(len(value.shape))]
            lowest, best, highest = zip(*sizes, strict=True)
            result[value.name] = (lowest, best, highest)
    return result


def _checked(engine: str, value: Value, shapes: Any) -> tuple[Shape, Shape, Shape]:
    """The three shapes said of one input."""
    rows = shapes if isinstance(shapes, list) and len(shapes) == 3 else []
    whole = all(isinstance(row, list) and all(type(size) is int and size > 0 for size in row) for row in rows)
    if not rows or not whole or any(len(row) != len(value.shape) for row in rows):
        raise BundleError(
            f"profiles.{engine}.{value.name} is {shapes!r}",
            cause=f"it has to be smallest, best and largest shape of {value}",
            remedy=_example(engine, value.name),
        )
    for index, sizes in enumerate(zip(*rows, strict=True)):
        fixed = value.shape[index]
        if list(sizes) != sorted(sizes) or (isinstance(fixed, int) and set(sizes) != {fixed}):
            raise BundleError(
                f"profiles.{engine}.{value.name}: axis {index} is {', '.join(map(str, sizes))}",
                cause=f"the input is {value}" if isinstance(fixed, int) else "sizes must not shrink",
                remedy=f"give {fixed} three times" if isinstance(fixed, int) else _example(engine, value.name),
            )
    return tuple(rows[0]), tuple(rows[1]), tuple(rows[2])


def _checked_sizes(engine: str, axis: str, sizes: Any) -> Sizes:
    """The three sizes said of one axis."""
    whole = isinstance(sizes, list | tuple) and all(type(size) is int and size > 0 for size in sizes)
    if not whole or len(sizes) != 3 or list(sizes) != sorted(sizes):
        raise BundleError(
            f"profiles.{engine}.{axis} is {sizes!r}",
            cause="it has to be smallest, best and largest size of an axis, in whole numbers that do not shrink",
            remedy=_of_axis(engine, axis),
        )
    return sizes[0], sizes[1], sizes[2]


def _axes(
    engine: str,
    inputs: Sequence[Value],
    said: Mapping[str, Sizes],
    shapes: Mapping[str, Sequence[Shape]],
    examples: Mapping[str, Shape],
) -> dict[str, Sizes]:
    """Sizes of the axes: what was said of them or of inputs that have them, else what the example leads to."""
    axes = dict(said)
    for value in inputs:
        for index, axis in enumerate(value.shape):
            if isinstance(axis, str) and value.name in shapes:
                sizes = _column(shapes[value.name], index)
                if axes.setdefault(axis, sizes) != sizes:
                    fact = f"profiles.{engine}: axis {axis} is both {axes[axis]} and {sizes}"
                    raise BundleError(fact, cause="equal names are equal sizes", remedy="say it once only")
    counts = {value.shape[0] for value in inputs if value.shape}
    for value in inputs:
        for axis, size in zip(value.shape, examples.get(value.name, ()), strict=False):
            if isinstance(axis, str) and axis.isidentifier():
                axes.setdefault(axis, _spread(size) if axis in counts else (size, size, size))
    return axes


def _size(
    engine: str,
    value: Value,
    index: int,
    axes: Mapping[str, Sizes],
    shapes: Mapping[str, Sequence[Shape]],
    examples: Mapping[str, Shape],
) -> Sizes:
    axis = value.shape[index]
    if isinstance(axis, int):
        return axis, axis, axis
    if value.name in shapes:
        return _column(shapes[value.name], index)
    if axis in axes:
        return axes[axis]  # type: ignore[index]
    if axis is not None and (worked_out := _worked_out(axis, axes)):
        return worked_out
    if index < len(examples.get(value.name, ())):
        size = examples[value.name][index]
        return (size, size, size) if index else _spread(size)
    raise BundleError(
        f"{engine}: input {value} has free axes and no profile",
        cause="neither the bundle nor the engine's card says a shape",
        remedy=f"add to {MANIFEST}: {_example(engine, value.name)}",
    )


def _column(shapes: Sequence[Shape], index: int) -> Sizes:
    lowest, best, highest = (shape[index] for shape in shapes)
    return lowest, best, highest


def _spread(size: int) -> Sizes:
    return 1, size, max(size, MOST_ROWS)


def _worked_out(expression: str, axes: Mapping[str, Sizes]) -> Sizes | None:
    """Sizes of an axis that is named by what it is of others, as "memory + 2"; None where they are not known."""
    try:
        tree = ast.parse(expression, mode="eval").body
        lowest, best, highest = (_value(tree, {name: sizes[i] for name, sizes in axes.items()}) for i in range(3))
    except (SyntaxError, KeyError):
        return None
    return lowest, best, highest


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    raise KeyError(ast.dump(node))


def _of_axis(engine: str, axis: str) -> str:
    return f"[profiles.{engine}] {axis} = [smallest size, best, largest]"


def _example(engine: str, name: str) -> str:
    return f"[profiles.{engine}] {name} = [[smallest shape], [best], [largest]]"
