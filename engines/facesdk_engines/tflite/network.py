"""The ONNX graph while it is made: nodes with one output each, constants as arrays, and the serialised result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from facesdk.errors import ConversionError

OPSET, IR_VERSION = 18, 9


@dataclasses.dataclass(eq=False)
class Node:
    """`inputs` may hold "" for an input that is left out."""

    kind: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


@dataclasses.dataclass
class Network:
    """Nodes in execution order; `inputs` and `outputs` map names to dimensions (a string is a symbolic one)."""

    nodes: list[Node] = dataclasses.field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)
    inputs: dict[str, list[int | str]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, list[int | str]] = dataclasses.field(default_factory=dict)
    _made: int = 0

    def name(self, hint: str) -> str:
        """A name that nothing else has."""
        self._made += 1
        return f"{hint.lower()}.{self._made}"

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32, hint: str = "constant") -> str:
        """The name of a new constant."""
        name = self.name(hint)
        self.constants[name] = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        return name

    def make(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> Node:
        """A node that is not yet in the graph."""
        return Node(kind, list(inputs), output or self.name(kind), attributes)

    def pointwise(
        self, x: str, weight: npt.ArrayLike, *, group: int = 1, output: str = "", hint: str = "weight"
    ) -> Node:
        """A 1x1 convolution that is not yet in the graph; weight (outputs, inputs of a group, 1, 1)."""
        attributes = {"kernel_shape": [1, 1], "pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1], "group": group}
        return Node("Conv", [x, self.constant(weight, hint=hint)], output or self.name("Conv"), attributes)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new last node."""
        self.nodes.append(self.make(kind, *inputs, **attributes))
        return self.nodes[-1].output

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; None for inputs and constants."""
        return next((node for node in self.nodes if node.output == name), None)

    def users(self, name: str) -> list[Node | None]:
        """The nodes that read a value, each once, and None where it is an output of the graph."""
        return [*(node for node in self.nodes if name in node.inputs), *([None] if name in self.outputs else [])]

    def replace(self, old: Node, *new: Node) -> None:
        """Put nodes in the place of one."""
        position = self.nodes.index(old)
        self.nodes[position : position + 1] = new

    def redirect(self, old: str, new: str) -> None:
        """Let every node that reads `old` read `new`; outputs of the graph stay."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]

    def drop_unused(self) -> None:
        """Remove nodes and constants that no output depends on."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def to_onnx(self, name: str, source: str) -> onnx.ModelProto:
        """The checked model; ConversionError where shapes do not fit together."""
        graph = helper.make_graph(
            [helper.make_node(n.kind, n.inputs, [n.output], name=n.output, **n.attributes) for n in self.nodes],
            name,
            _signature(self.inputs.items()),
            _signature(self.outputs.items()),
            [numpy_helper.from_array(value, key) for key, value in self.constants.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="facesdk")
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            fact, remedy = f"{source} does not form a consistent graph", "get the file again: it is probably damaged"
            raise ConversionError(fact, cause=str(error), remedy=remedy) from error
        return model


def _signature(values: Iterable[tuple[str, list[int | str]]]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in values]
