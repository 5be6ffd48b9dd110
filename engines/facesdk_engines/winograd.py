"""3x3 convolutions as Winograd's F(4x4, 3x3), in standard operators: a quarter of the products, to rounding.

A tile of 6 x 6 values is transformed into 36 others; each of these has a matrix of its own, channels to channels, in
place of the 3 x 3; and what the 36 products give is transformed into 4 x 4 results.  Source: Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .nodes import Nodes
from .weights import append, array_of, refer

Array = npt.NDArray[Any]
_Forward = Callable[[Nodes, str, tuple[int, int]], tuple[str, str]]

#: beside infinity; fractions halve the error of the usual 0, 1, -1, 2, -2: 6e-7 of the result's deviation, not 14e-7
POINTS = (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_STEP, _TILE = 4, 6
_BANDED = 256  # channels up to which there are bands: the matrices are read again for each
_PLANE = 512  # values that fill 2 KiB
_FORWARD, _BACK = "winograd_forward", "winograd_back"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Convolutions that are worth it.

    least_channels  of input and of output: below, the transforms cost what the products save.
    most_weights    of Cin * Cout: the matrices take four times the memory of the 3 x 3.
    """

    least_channels: int = 128
    most_weights: int = 1_300_000


@dataclasses.dataclass(frozen=True)
class Winograd:
    """How one form of an engine uses it: for which convolutions, and in how many bands of rows.

    Several bands bound the memory of large pictures.
    """

    bands: int = 1
    limits: Limits = Limits()


def winograd_weights(model: ModelProto, limits: Limits = Limits()) -> list[str]:
    """Names of the initializers that are weights of convolutions within the limits."""
    weights, names = _fixed(model), dict.fromkeys(node.input[1] for node in model.graph.node if _is_plain(node))
    return [name for name in names if name in weights and _fits(weights[name], limits)]


def matrices(weight: Array) -> Array:
    """(36, out, in) float32 of the weights (out, in, 3, 3), computed in float64."""
    _, kernel, _ = _transforms()
    points = np.kron(kernel, kernel) @ weight.reshape(-1, 9).T.astype(np.float64)
    return points.reshape(_TILE**2, *weight.shape[:2]).astype(np.float32)


def write_matrices(model: ModelProto, names: Iterable[str], path: Path) -> dict[str, TensorProto]:
    """For each weight its matrices, as a tensor that refers to the file `path`, after writing that.

    Weights beside the graph are read from the file's folder.  One at a time is in memory.
    """
    weights, tensors = _fixed(model), {}
    with path.open("wb") as file:
        for name in names:
            values = matrices(array_of(weights[name], path.parent))
            tensors[name] = TensorProto(name=f"{name}_winograd", data_type=TensorProto.FLOAT, dims=values.shape)
            refer(tensors[name], path.name, *append(file, values))
    return tensors


def with_winograd(
    model: ModelProto, tensors: Mapping[str, TensorProto], *, bands: int = 1, spread: bool = False
) -> ModelProto:
    """A copy in which the convolutions with these weights are products with their matrices; others are left alone.

    tensors  name of a weight -> its matrices.  Weights are not touched, nor needed; those no longer used are left out.
    bands    of rows, one after the other, where channels are few and so pictures large: what lies between the
             transforms takes 2.25 times the memory of the picture, or that of a band.
    spread   for OpenVINO, whose 3-d convolution of one channel is slow.  Its change of layout after a 2-d one takes
             eight times as long where planes are multiples of 2 KiB: there the picture gets a column of tiles more.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    chosen = [node for node in model.graph.node if _is_plain(node) and node.input[1] in tensors]
    if not chosen:
        return copy
    forms = {node.output[0]: _form(node, tensors[node.input[1]], bands=bands, spread=spread) for node in chosen}
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(new for node in model.graph.node for new in forms.get(node.output[0], [node]))
    used = {name for node in copy.graph.node for name in node.input}
    used |= {value.name for value in (*model.graph.input, *model.graph.output)}
    every = [*model.graph.initializer, *tensors.values(), *_constants(spread=spread)]
    copy.graph.initializer.extend(each for each in every if each.name in used)
    return copy


# -- what is rewritten ------------------------------------------------------------------------------------


def _is_plain(node: NodeProto) -> bool:
    """Whether a node is a convolution of which all but the kernel's size is known to fit."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    defaults = {"auto_pad": b"NOTSET", "dilations": [1, 1], "group": 1, "strides": [1, 1]}
    plain = all(given.get(name, default) == default for name, default in defaults.items())
    return (node.domain, node.op_type) == ("", "Conv") and plain and given.get("pads") == [1, 1, 1, 1]


def _fixed(model: ModelProto) -> dict[str, TensorProto]:
    """Initializers that a caller cannot replace."""
    inputs = {value.name for value in model.graph.input}
    return {each.name: each for each in model.graph.initializer if each.name not in inputs}


def _fits(weight: TensorProto, limits: Limits) -> bool:
    if weight.data_type != TensorProto.FLOAT or list(weight.dims[2:]) != [3, 3]:
        return False
    outputs, inputs = weight.dims[:2]
    return min(outputs, inputs) >= limits.least_channels and outputs * inputs <= limits.most_weights


# -- one convolution --------------------------------------------------------------------------------------


def _form(node: NodeProto, matrix: TensorProto, *, bands: int, spread: bool) -> list[NodeProto]:
    made, picture = Nodes(f"{node.output[0]}_winograd"), node.input[0]
    sides, forward = made("Shape", picture, start=2), _spread_points if spread else _points
    if bands > 1 and max(matrix.dims[1:]) <= _BANDED:
        parts = [_tiles(made, matrix, each, forward, (0, 0)) for each in _bands(made, picture, sides, bands)]
        picture = made("Concat", *parts, axis=2)
    else:
        picture = _tiles(made, matrix, picture, forward, (1, _STEP))
    bias = made("Reshape", node.input[2], made.integers(-1, 1, 1)) if len(node.input) == 3 else ""
    result = "" if bias else node.output[0]
    picture = made("Slice", picture, made.integers(0, 0), sides, made.integers(2, 3), result=result)
    if bias:
        made("Add", picture, bias, result=node.output[0])
    return made.nodes


def _bands(made: Nodes, picture: str, sides: str, count: int) -> Iterator[str]:
    """As many equal bands of whole tiles, each with the row above and the row below."""
    height = made("Gather", sides, made.integers(0))
    rows = made("Add", height, made.integers(count * _STEP - 1))
    rows = made("Mul", made("Div", rows, made.integers(count * _STEP)), made.integers(_STEP))
    below = made("Sub", made("Mul", rows, made.integers(count)), made("Sub", height, made.integers(1)))
    margins = made("Concat", made.integers(0, 0, 1, 0, 0, 0), below, made.integers(0), axis=0)
    padded = made("Pad", picture, margins)
    for index in range(count):
        first = made("Mul", rows, made.integers(index))
        last = made("Add", made("Add", first, rows), made.integers(_TILE - _STEP))
        yield made("Slice", padded, first, last, made.integers(2))


def _tiles(made: Nodes, matrix: TensorProto, picture: str, forward: _Forward, margins: tuple[int, int]) -> str:
    """The convolution of whole tiles, of which some may lie beyond the picture; margins: rows above and below it."""
    outputs, inputs = matrix.dims[1:]
    batch = made("Shape", picture, start=0, end=1)
    points, columns = forward(made, made("Transpose", picture, perm=(1, 0, 2, 3)), margins)
    points = made("Reshape", points, made.integers(_TILE**2, inputs, -1))
    products = made("MatMul", matrix.name, points)
    tiles = made("MatMul", _BACK, made("Reshape", products, made.integers(_TILE**2, -1)))
    tiles = made("Reshape", tiles, made("Concat", made.integers(1, _STEP**2, -1), columns, axis=0))
    width = made("Mul", columns, made.integers(_STEP))
    shape = made("Concat", made.integers(outputs), batch, made.integers(-1), width, axis=0)
    whole = made("Reshape", made("DepthToSpace", tiles, blocksize=_STEP), shape)
    return made("Transpose", whole, perm=(1, 0, 2, 3))


def _points(made: Nodes, picture: str, margins: tuple[int, int]) -> tuple[str, str]:
    """(1, 36, channels * batch, tiles down, tiles across), and how many are across."""
    sides, (above, below) = made("Shape", picture, start=2), margins
    deep = made("Reshape", picture, made("Concat", made.integers(1, 1, -1), sides, axis=0))
    points = made("Conv", deep, _FORWARD, strides=(1, _STEP, _STEP), pads=(0, above, 1, 0, below, _STEP))
    return points, made("Shape", points, start=4)


def _spread_points(made: Nodes, picture: str, margins: tuple[int, int]) -> tuple[str, str]:
    """(36, channels * batch, tiles), and how many are across."""
    sides, (above, below) = made("Shape", picture, start=2), margins
    flat = made("Reshape", picture, made("Concat", made.integers(-1, 1), sides, axis=0))
    # whole tiles: rows with their margins are a multiple of the step, and two more
    tiles = made("Div", made("Add", sides, made.integers(above + below - 2, _STEP - 1)), made.integers(_STEP))
    beyond = made("Mod", made("ReduceProd", tiles), made.integers(_PLANE))
    right = made("Where", made("Cast", beyond, to=TensorProto.BOOL), made.integers(_STEP), made.integers(2 * _STEP))
    margin = made("Concat", made.integers(0, 0, above, 1, 0, 0, below), right, axis=0)
    points = made("Conv", made("Pad", flat, margin), _FORWARD, strides=(_STEP, _STEP))
    rows = made("Reshape", points, made.integers(0, _TILE**2, -1))
    return made("Transpose", rows, perm=(1, 0, 2)), made("Shape", points, start=3)


# -- the transforms ---------------------------------------------------------------------------------------


def _constants(*, spread: bool) -> list[TensorProto]:
    """Both transforms as weights: of a convolution over the picture, and of a product with the 36 values."""
    forward, _, back = _transforms()
    kernel = np.kron(forward, forward).reshape(-1, 1, *(() if spread else (1,)), _TILE, _TILE)
    arrays = {_FORWARD: kernel, _BACK: np.kron(back, back)}
    return [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]


def _transforms() -> tuple[Array, Array, Array]:
    """Of a row of the picture (6, 6), of the weights (6, 3), and back (4, 6): the product of polynomials."""

    def powers(count: int) -> Array:
        return np.array([*([point**k for k in range(count)] for point in POINTS), [0] * (count - 1) + [1]], np.float64)

    return np.linalg.inv(powers(_TILE)).T, powers(_TILE - _STEP + 1), powers(_STEP).T
