"""What stays float32: what is made of inputs up to the first layer, nodes by name, nodes with values out of range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import UsageError

onnx = pytest.importorskip("onnx", reason="deriving engines needs onnx")

from facesdk_engines.precision_graph import types_of  # noqa: E402
from facesdk_engines.precision_islands import Islands  # noqa: E402

RNG = np.random.default_rng(11)


def step(save_graph: Any) -> Path:
    """A denoising step in little: a layer between what is computed of `bank` and what of `weights`."""
    nodes = [
        ("Mul", ["bank", "scale"], ["scaled"]),
        ("Shape", ["scaled"], ["size"]),
        ("Conv", ["scaled", "kernel"], ["features"]),
        ("Relu", ["features"], ["active"]),
        ("Reshape", ["active", "size"], ["prediction"]),
        ("Mul", ["prediction", "weights"], ["guided"]),
        ("Neg", ["guided"], ["negative"]),
        ("Add", ["negative", "bank"], ["next"]),
        ("MatMul", ["next", "projection"], ["features_2"]),
        ("Relu", ["features_2"], ["y"]),
    ]
    weights = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    inputs = {"bank": [1, 2, 4, 4], "scale": [1], "weights": [1]}
    return save_graph(nodes, inputs, {"y": [1, 2, 4, 4]}, weights=weights)


SHAPES = {"kernel": (2, 2, 1, 1), "projection": (4, 4)}
EVERY = ["scaled", "size", "features", "active", "prediction", "guided", "negative", "next", "features_2", "y"]


def kept(path: Path, islands: Islands, beyond: Any = ()) -> list[str]:
    model = onnx.load(path)
    found = islands.of(model.graph, types_of(model), beyond)
    return [node.output[0] for index, node in enumerate(model.graph.node) if index in found]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ((), []),
        (("scale",), ["scaled", "size"]),
        (("bank",), ["scaled", "size", "next"]),
        (("weights",), ["guided", "negative", "next"]),
        (("weights", "bank"), ["scaled", "size", "guided", "negative", "next"]),
    ],
)
def test_what_is_made_of_an_input_stays_as_far_as_the_next_layer(
    save_graph: Any, inputs: tuple[str, ...], names: list[str]
) -> None:
    """Reshape reads a size that is made of the bank, and none of its values."""
    assert kept(step(save_graph), Islands(inputs=inputs)) == names


def test_a_product_without_weights_is_no_layer(save_graph: Any) -> None:
    nodes = [("MatMul", ["matrix", "bank"], ["m"]), ("Relu", ["m"], ["y"])]
    path = save_graph(nodes, {"matrix": [2, 2], "bank": [2, 2]}, {"y": [2, 2]})
    assert kept(path, Islands(inputs=("matrix",))) == ["m", "y"]


def test_nodes_by_name(save_graph: Any) -> None:
    path = step(save_graph)
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"node_{node.op_type}_{node.output[0]}"
    onnx.save(model, path)
    assert kept(path, Islands(nodes=("node_Conv_*", "node_*_y"))) == ["features", "y"]
    assert kept(path, Islands(nodes=("*",))) == EVERY


def test_what_makes_and_what_reads_a_value_out_of_range(save_graph: Any) -> None:
    assert kept(step(save_graph), Islands(), {"active"}) == ["active", "prediction"]


def test_operators_are_chosen(save_graph: Any) -> None:
    assert kept(step(save_graph), Islands(operators={"Relu"})) == ["active", "y"]


@pytest.mark.parametrize("islands", [Islands(inputs=("level",)), Islands(nodes=("level*",))])
def test_names_that_the_graph_does_not_have(save_graph: Any, islands: Islands) -> None:
    with pytest.raises(UsageError, match=r"the islands name level\*?, which graph graph does not have"):
        kept(step(save_graph), islands)
