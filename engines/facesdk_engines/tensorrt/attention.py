"""Which attentions of a network became one kernel: those of the network against the layers of the plan."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

# a node of a function stands before the node that calls it: "[ONNX Layer: node | caller (Operator)]"
_ONNX_NODE = re.compile(r"\[ONNX Layer: (?:[^\]]*\| )?([^\]|]*?)(?: \([^)\]]*\))?\]")
_FUSED = re.compile(r"mha|attention", re.IGNORECASE)  # fmha too
#: as the builder's log names them, one line each
_LOGGED = re.compile(r"^Name: (?P<name>.*?), LayerType: .*?Metadata: (?P<metadata>.*)$", re.MULTILINE)
_LAYER_LIST = ("Layers:", "Engine Layer Information:")
# layers that may stand between a product and a softmax: scales, masks, casts, reshapes
_BETWEEN = ("ELEMENTWISE", "CAST", "SHUFFLE", "IDENTITY")


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a plan, and the ONNX nodes that went into it; of a function, the node that calls it."""

    name: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Attentions:
    """Names of the nodes, the softmax or what calls its function, by what became of their attention."""

    fused: tuple[str, ...]
    decomposed: tuple[str, ...]

    def __str__(self) -> str:
        return f"attention: {len(self.fused)} fused, {len(self.decomposed)} not"


def is_layer_list(message: str) -> bool:
    """Whether a message of the builder lists the plan's layers."""
    return message.lstrip().startswith(_LAYER_LIST)


def layers_of_log(message: str) -> list[Layer]:
    """The layers in the builder's message, which needs no GPU."""
    return [Layer(each["name"], _nodes(each["metadata"])) for each in _LOGGED.finditer(message)]


def layers_of_inspector(text: str) -> list[Layer]:
    """The layers in the JSON of an EngineInspector, which needs a GPU; those without details are names."""
    layers: list[dict[str, Any] | str] = json.loads(text)["Layers"]
    whole = [{"Name": each} if isinstance(each, str) else each for each in layers]
    return [Layer(each["Name"], _nodes(each.get("Metadata", ""))) for each in whole]


def attentions(network: Any, trt: ModuleType) -> list[str]:
    """The softmax nodes between two matrix products, and whole attentions, by their name in the ONNX file."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    readers: dict[str, list[Any]] = {}
    for layer in layers:
        for name in _inputs(layer):
            readers.setdefault(name, []).append(layer)
    before = lambda layer: [makers[name] for name in _inputs(layer) if name in makers]  # noqa: E731
    after = lambda layer: [  # noqa: E731
        reader for i in range(layer.num_outputs) for reader in readers.get(layer.get_output(i).name, [])
    ]
    softmaxes = [layer for layer in layers if layer.type == trt.LayerType.SOFTMAX]
    found = [each for each in softmaxes if _leads(each, before, trt) and _leads(each, after, trt)]
    whole = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # an attention that is one node in the file; since 10.14
    return [_node(each) for each in layers if each in found or each.type == whole]


def report(softmaxes: Sequence[str], layers: Sequence[Layer]) -> Attentions:
    """An attention is fused where a layer whose name says so holds its softmax."""
    inside = {node for layer in layers if _FUSED.search(layer.name) for node in layer.nodes}
    fused = tuple(name for name in softmaxes if name in inside)
    return Attentions(fused, tuple(name for name in softmaxes if name not in inside))


def _leads(layer: Any, neighbours: Any, trt: ModuleType) -> bool:
    """Whether a way through the neighbours ends at a matrix product."""
    ways, seen = [layer], set()
    passable = {getattr(trt.LayerType, name) for name in _BETWEEN}
    while ways:
        for each in neighbours(ways.pop()):
            if each.type == trt.LayerType.MATRIX_MULTIPLY:
                return True
            if each.type in passable and each.name not in seen:
                seen.add(each.name)
                ways.append(each)
    return False


def _inputs(layer: Any) -> Iterator[str]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return (tensor.name for tensor in tensors if tensor is not None)


def _node(layer: Any) -> str:
    return next(iter(_nodes(layer.metadata)), layer.name)


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in _ONNX_NODE.findall(metadata))
