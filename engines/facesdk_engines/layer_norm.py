"""Layer norms that give their statistics, as gradients need them, in the form that TensorRT takes.

ONNX's LayerNormalization has two results beside the values: mean and reciprocal deviation, of size 1 on the axes that
it reduces.  ONNX Runtime has them at hand; TensorRT refuses a node that gives them.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from .nodes import Nodes

_EPSILON = 1e-5  # ONNX's default


def gives_statistics(domain: str, operator: str, results: int) -> bool:
    """Whether a node with so many results is a layer norm with its statistics."""
    return (domain, operator) == ("", "LayerNormalization") and results > 1


def with_own_statistics(model: ModelProto) -> ModelProto:
    """A copy in which standard operators compute the statistics beside each layer norm.  Weights are not touched."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in model.graph.node:
        with_statistics = gives_statistics(node.domain, node.op_type, len(node.output))
        copy.graph.node.extend(_parted(node) if with_statistics else [node])
    return copy


def _parted(node: NodeProto) -> list[NodeProto]:
    """The layer norm alone, and its statistics; its axis is counted from the last, as torch's exporter writes it."""
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    x, (result, mean, inverse) = node.input[0], [*node.output, ""][:3]
    made = Nodes(f"{result}_statistics")
    axes = made.integers(*range(given.get("axis", -1), 0))
    centre = made("ReduceMean", x, axes, result=mean)
    centred = made("Sub", x, centre)
    variance = made("ReduceMean", made("Mul", centred, centred), axes)
    epsilon = made("Constant", value_float=given.get("epsilon", _EPSILON))
    deviation = made("Sqrt", made("Add", variance, epsilon))
    made("Reciprocal", deviation, result=inverse)
    alone = NodeProto()
    alone.CopyFrom(node)
    del alone.output[1:]
    return [alone, *made.nodes]
