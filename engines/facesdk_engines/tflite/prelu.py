"""PReLU for ONNX Runtime's CPU kernels: written with convolutions, in two ways.

Its convolutions work on blocks of 16 channels (8 before AVX-512) and take a following Add and Relu along for free.
The PRelu kernel knows neither, and costs a re-ordering before and after it: four times the whole network's time.
Both ways hold for any slope, negative and above one too; they differ from PRelu by rounding only.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .network import Network, Node

# Up to this many channels the doubled ones still fit one block of the convolution kernels.
_NARROW = 8


def prelu_as_convolutions(network: Network) -> None:
    """Rewrite every PRelu of the graph."""
    for node in [node for node in network.nodes if node.kind == "PRelu"]:
        bottleneck = _bottleneck(network, node)
        if bottleneck is None:
            _residual(network, node)
        else:
            _split_signs(network, node, bottleneck)
    network.drop_unused()


def _residual(network: Network, node: Node) -> None:
    """Y = x + sign(1-s) * relu(-|1-s| * x): two 1x1 depth-wise convolutions, the Relu and the Add inside them."""
    x, slope = node.inputs[0], network.constants[node.inputs[1]].reshape(-1, 1, 1, 1)
    bend = network.pointwise(x, -np.abs(1 - slope), group=len(slope), hint="bend")
    relu = network.make("Relu", bend.output)
    signed = network.pointwise(relu.output, np.where(slope > 1, -1, 1), group=len(slope), hint="sign")
    network.replace(node, bend, relu, signed, network.make("Add", signed.output, x, output=node.output))


@dataclasses.dataclass(frozen=True)
class _Bottleneck:
    """convolution `before` -> PRelu -> `depthwise` -> convolution `after`, read by nothing else in between."""

    before: Node
    depthwise: Node
    after: Node


def _bottleneck(network: Network, node: Node) -> _Bottleneck | None:
    """The surroundings of a narrow PRelu, None where they do not allow `_split_signs`."""
    before, depthwise = network.producer(node.inputs[0]), _only_user(network, node.output)
    after = _only_user(network, depthwise.output) if depthwise else None
    channels = network.constants[node.inputs[1]].size
    if before is None or depthwise is None or after is None or channels > _NARROW:
        return None
    convolutions = all(other.kind == "Conv" for other in (before, depthwise, after))
    if not convolutions or _only_user(network, before.output) is not node:
        return None
    groups = [other.attributes["group"] for other in (before, depthwise, after)]
    plain = groups == [1, channels, 1] and len(network.constants[depthwise.inputs[1]]) == channels
    return _Bottleneck(before, depthwise, after) if plain else None


def _only_user(network: Network, name: str) -> Node | None:
    users = network.users(name)
    return users[0] if len(users) == 1 else None


def _split_signs(network: Network, node: Node, around: _Bottleneck) -> None:
    """Compute relu(x) and relu(-x) as twice the channels; y = relu(x) - s*relu(-x) goes into the next weights."""
    slope = network.constants[node.inputs[1]].reshape(-1, 1, 1, 1)

    def doubled(conv: Node, second: float | np.ndarray, axis: int, second_bias: float = 0.0) -> None:
        weight = network.constants[conv.inputs[1]]
        conv.inputs[1] = network.constant(np.concatenate([weight, second * weight], axis), hint="weight")
        if axis == 0 and len(conv.inputs) > 2:
            bias = network.constants[conv.inputs[2]]
            conv.inputs[2] = network.constant(np.concatenate([bias, second_bias * bias]), hint="bias")

    doubled(around.before, -1.0, 0, -1.0)
    doubled(around.depthwise, -slope, 0)
    doubled(around.after, 1.0, 1)
    around.depthwise.attributes["group"] = 2 * slope.size
    network.replace(node, network.make("Relu", around.before.output, output=node.output))
