"""Rounding inner channels up to the blocks of ONNX Runtime's CPU convolutions.

Those compute whole blocks anyway, but other numbers of channels cost a re-ordering at every pooling, and odd ones at
the convolution itself.  With zeros in the added channels most paddings of channels become nothing at all; the others
become 1x1 convolutions, which compute the Add that follows along.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from .network import Network, Node

BLOCK = 16  # channels: one block with AVX-512, two with AVX2
_MOST = 1 << 12  # channels of a padding that becomes a convolution, whose weights are their square

_KEEP_ZERO = {"AveragePool", "MaxPool", "PRelu", "Relu", "Resize"}  # nodes under which a channel of zeros stays one


def align_channels(network: Network) -> None:
    """Widen all values between convolutions to multiples of BLOCK, unless anything else reads or makes them."""
    depth = _depths(network)
    for node in list(network.nodes):
        if _pads_channels(network, node, depth) and _rounded(depth[node.inputs[0]]) != _rounded(depth[node.output]):
            _pad_by_convolution(network, node, depth)
    width = _widths(network, depth)
    for node in list(network.nodes):
        if node.kind == "Conv":
            _widen_convolution(network, node, width)
        elif node.kind == "PRelu" and node.output in width:
            slope = network.constants[node.inputs[1]]
            node.inputs[1] = network.constant(_padded(slope, width[node.output]), hint="slope")
        elif _pads_channels(network, node, depth):
            if node.output in width:
                network.redirect(node.output, node.inputs[0])
            else:
                _pad_by_convolution(network, node, depth)
    network.drop_unused()


def _rounded(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def _padded(value: npt.NDArray[np.float32], *shape: int) -> npt.NDArray[np.float32]:
    """The array with zeros at the end of its first axes, up to `shape`."""
    wanted = [*shape, *value.shape[len(shape) :]]
    return np.pad(value, [(0, to - have) for have, to in zip(value.shape, wanted, strict=True)])


def _depths(network: Network) -> dict[str, int]:
    """Channels of each value that is a convolution's output, or made of such by nodes that keep zeros."""
    depth: dict[str, int] = {}
    for node in network.nodes:
        known = [depth.get(name) for name in node.inputs]
        if node.kind == "Conv":
            depth[node.output] = len(network.constants[node.inputs[1]])
        elif known and known[0] is not None:
            if node.kind in _KEEP_ZERO or (node.kind == "Add" and known[0] == known[1]):
                depth[node.output] = known[0]
            elif node.kind == "Pad":
                depth[node.output] = known[0] + int(network.constants[node.inputs[1]].reshape(2, -1)[:, 1].sum())
    return depth


def _pads_channels(network: Network, node: Node, depth: dict[str, int]) -> bool:
    """Whether a node adds channels at the end and nothing else."""
    if node.kind != "Pad" or depth.get(node.output, _MOST) >= _MOST:
        return False
    pads = network.constants[node.inputs[1]].tolist()
    return len(pads) == 8 and pads[5] > 0 and not any(pads[:5]) and not any(pads[6:])


def _pad_by_convolution(network: Network, node: Node, depth: dict[str, int]) -> None:
    weight = np.eye(depth[node.output], depth[node.inputs[0]])[:, :, None, None]
    network.replace(node, network.pointwise(node.inputs[0], weight, output=node.output))


def _is_depthwise(network: Network, node: Node) -> bool:
    return bool(node.attributes["group"] == len(network.constants[node.inputs[1]]))


def _ties(network: Network, node: Node, depth: dict[str, int]) -> list[str]:
    """The values at a node that have to get the same width; empty where the node stands no wider values."""
    if node.kind in _KEEP_ZERO or _pads_channels(network, node, depth):
        names = [node.inputs[0], node.output]
    elif node.kind == "Add":
        names = [*node.inputs, node.output]
    elif node.kind == "Conv" and node.attributes["group"] > 1 and _is_depthwise(network, node):
        names = [node.inputs[0], node.output]
    else:
        names = []
    return names if all(name in depth for name in names) else []


def _widths(network: Network, depth: dict[str, int]) -> dict[str, int]:
    """The new number of channels of every value that can have one."""
    group = {name: name for name in depth}
    narrow = set(depth) & set(network.outputs)
    for node in network.nodes:
        tied = _ties(network, node, depth)
        if tied:
            merged = {group[name] for name in tied}
            group = {name: tied[0] if key in merged else key for name, key in group.items()}
        elif node.kind != "Conv" or node.attributes["group"] > 1:
            narrow.update({*node.inputs, node.output} & set(depth))
    members = defaultdict(list)
    for name, key in group.items():
        members[key].append(name)
    free = (names for names in members.values() if narrow.isdisjoint(names))
    return {name: _rounded(max(depth[other] for other in names)) for names in free for name in names}


def _widen_convolution(network: Network, node: Node, width: dict[str, int]) -> None:
    weight = network.constants[node.inputs[1]]
    wide = width.get(node.output, len(weight))
    if node.attributes["group"] > 1:
        shape = (wide, weight.shape[1])
        node.attributes["group"] = wide if _is_depthwise(network, node) else node.attributes["group"]
    else:
        shape = (wide, width.get(node.inputs[0], weight.shape[1]))
    if shape == weight.shape[:2]:
        return
    node.inputs[1] = network.constant(_padded(weight, *shape), hint="weight")
    if len(node.inputs) > 2:
        node.inputs[2] = network.constant(_padded(network.constants[node.inputs[2]], wide), hint="bias")
