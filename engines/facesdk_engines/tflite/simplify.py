"""Rewriting the translated graph into fewer nodes that compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from .network import Network

Pattern = Any  # the name of a variable, or a tuple: kind of node, then a pattern for each of its inputs

# y = x*g + (-mean)*g with g = gamma / sqrt(mean((x - mean)^2) + epsilon)
_MEAN = ("ReduceMean", "x", "mean axes")
_DIFFERENCE = ("Sub", "x", _MEAN)
_VARIANCE = ("ReduceMean", ("Mul", _DIFFERENCE, _DIFFERENCE), "variance axes")
_GAIN = ("Mul", ("Reciprocal", ("Sqrt", ("Add", _VARIANCE, "epsilon"))), "gamma")
_LAYER_NORM = ("Add", ("Mul", "x", _GAIN), ("Mul", ("Neg", _MEAN), _GAIN))


def simplify(network: Network) -> None:
    """Join transposes, give spatial pads to convolutions, recognise layer normalisation, drop what nothing reads."""
    join_transposes(network)
    join_pads(network)
    join_layer_norms(network)
    network.drop_unused()


def join_transposes(network: Network) -> None:
    """Make one Transpose of two in a row, and none where they undo each other."""
    for node in list(network.nodes):
        first = network.producer(node.inputs[0]) if node.kind == "Transpose" else None
        if first is None or first.kind != "Transpose":
            continue
        perm = [first.attributes["perm"][axis] for axis in node.attributes["perm"]]
        if perm == sorted(perm) and node.output not in network.outputs:
            network.redirect(node.output, first.inputs[0])
        else:
            node.inputs, node.attributes = [first.inputs[0]], {"perm": perm}


def join_pads(network: Network) -> None:
    """Give the zeros around an image to the convolutions that read it."""
    for node in list(network.nodes):
        users = network.users(node.output)
        if node.kind != "Pad" or not all(user is not None and user.kind == "Conv" for user in users):
            continue
        batch, channels, *edges = network.constants[node.inputs[1]].reshape(2, -1).T.tolist()
        if any(batch) or any(channels) or min(min(edge) for edge in edges) < 0:
            continue
        added = [edge[0] for edge in edges] + [edge[1] for edge in edges]
        for user in filter(None, users):
            user.attributes["pads"] = [a + b for a, b in zip(user.attributes["pads"], added, strict=True)]
        network.redirect(node.output, node.inputs[0])


def join_layer_norms(network: Network) -> None:
    """Make one LayerNormalization (without offset, over the last axis) of the ten nodes that TensorFlow writes."""
    for node in list(network.nodes):
        names: dict[str, str] = {}
        if not _matches(network, node.output, _LAYER_NORM, names):
            continue
        mean_axes, variance_axes, epsilon, gamma = (
            network.constants.get(names[key], np.zeros(0)) for key in ("mean axes", "variance axes", "epsilon", "gamma")
        )
        if mean_axes.tolist() == variance_axes.tolist() == [-1] and epsilon.size == 1 and gamma.ndim == 1:
            inputs, value = (names["x"], names["gamma"]), float(epsilon.item())
            new = network.make("LayerNormalization", *inputs, output=node.output, axis=-1, epsilon=value)
            network.replace(node, new)


def _matches(network: Network, name: str, pattern: Pattern, names: dict[str, str]) -> bool:
    """Whether a value is computed as the pattern says; `names` takes the values at its variables."""
    if isinstance(pattern, str):
        return names.setdefault(pattern, name) == name
    node = network.producer(name)
    if node is None or node.kind != pattern[0] or len(node.inputs) != len(pattern) - 1:
        return False
    return all(_matches(network, value, part, names) for value, part in zip(node.inputs, pattern[1:], strict=True))
