"""Attention nodes of a graph in the form that a runtime computes fastest.  Weights are not touched, nor needed.

`FusedAttention(query, key, value)` of DOMAIN, attributes heads and scale: query (b, s, heads * d), key and value
(r, t, heads * d), result as the query; r divides b, and b / r successive rows of the query share a row of keys.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto, helper

from .nodes import Nodes

DOMAIN, OPERATOR = "facesdk", "FusedAttention"
_MICROSOFT = "com.microsoft"
_STANDARD_OPSET = 18

Row = list[NodeProto]


def has_attention(model: ModelProto) -> bool:
    """Whether the graph holds nodes that the other functions rewrite."""
    return any(map(_is_attention, model.graph.node))


def with_plain_ops(model: ModelProto) -> ModelProto:
    """A copy with MatMul, Softmax, MatMul in place of every attention; the query is scaled, before the first."""
    shared = _outside(model)
    return _rewritten(model, lambda node: _plain(node, grouped=node.input[1] in shared))


def with_mha(model: ModelProto) -> ModelProto:
    """A copy with ONNX Runtime's MultiHeadAttention, and plain operators where the keys come from outside.

    The first never holds all scores at once; for the few keys of a text the second is faster.
    """
    shared = _outside(model)
    copy = _rewritten(model, lambda node: _plain(node, grouped=True) if node.input[1] in shared else [_mha(node)])
    copy.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    return copy


def with_function(model: ModelProto) -> ModelProto:
    """A copy that keeps the nodes and says in a function what they compute: for runtimes with a kernel, or without.

    TensorRT takes the plugin that the nodes name where it is registered, and the function elsewhere.
    """
    copy = _rewritten(model, lambda node: [_for_plugin(node)])
    copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    copy.functions.append(_function())
    return copy


def _is_attention(node: NodeProto) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, OPERATOR)


def _outside(model: ModelProto) -> set[str]:
    """Names of the graph's inputs: keys among them are those of a text, and may serve several rows."""
    return {value.name for value in model.graph.input}


def _rewritten(model: ModelProto, form: Callable[[NodeProto], Row]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    nodes = [new for node in model.graph.node for new in (form(node) if _is_attention(node) else [node])]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    others = [each for each in model.opset_import if each.domain != DOMAIN]
    del copy.opset_import[:]
    copy.opset_import.extend(others)
    return copy


# -- forms of one node ------------------------------------------------------------------------------------


def _mha(node: NodeProto) -> NodeProto:
    heads, scale = _attributes(node)
    return helper.make_node(
        "MultiHeadAttention", node.input, node.output, node.name, domain=_MICROSOFT, num_heads=heads, scale=scale
    )


def _for_plugin(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    extra = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
    copy.attribute.extend(helper.make_attribute(name, text) for name, text in extra.items())
    return copy


def _plain(node: NodeProto, *, grouped: bool) -> Row:
    heads, scale = _attributes(node)
    (query, key, value), stem = node.input, node.output[0]
    constants = [
        helper.make_node("Constant", [], [f"{stem}_heads"], value_ints=[heads]),
        helper.make_node("Constant", [], [f"{stem}_scale"], value_float=scale),
    ]
    return [*constants, *_body(stem, query, key, value, f"{stem}_heads", f"{stem}_scale", grouped=grouped)]


def _function() -> FunctionProto:
    nodes = [
        _attribute_value("heads", "value_int", AttributeProto.INT, "heads_scalar"),
        _attribute_value("scale", "value_float", AttributeProto.FLOAT, "scale"),
        helper.make_node("Constant", [], ["row"], value_ints=[-1]),
        helper.make_node("Reshape", ["heads_scalar", "row"], ["heads"]),
        *_body("result", "query", "key", "value", "heads", "scale", grouped=True),
    ]
    return helper.make_function(
        DOMAIN, OPERATOR, ["query", "key", "value"], ["result"], nodes,
        [helper.make_opsetid("", _STANDARD_OPSET)], ["heads", "scale"],
    )  # fmt: skip


def _attribute_value(name: str, kind: str, type_: AttributeProto.AttributeType, result: str) -> NodeProto:
    """A constant of the function: the attribute of the node that calls it."""
    node = helper.make_node("Constant", [], [result])
    node.attribute.add(name=kind, type=type_, ref_attr_name=name)
    return node


def _attributes(node: NodeProto) -> tuple[int, float]:
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return values["heads"], values["scale"]


def _body(result: str, query: str, key: str, value: str, heads: str, scale: str, *, grouped: bool) -> Row:
    """Standard operators that compute `result`; `grouped` allows fewer rows of keys than of queries."""
    made = Nodes(result)
    split = made("Concat", made.integers(0, 0), heads, made.integers(-1), axis=0)
    scaled = made("Mul", query, scale)
    if grouped:
        rows = made("Shape", key, start=0, end=1)
        scaled = made("Reshape", scaled, made("Concat", rows, made.integers(-1, 0), axis=0))
    q, k, v = (
        made("Transpose", made("Reshape", each, split), perm=perm)
        for each, perm in ((scaled, (0, 2, 1, 3)), (key, (0, 2, 3, 1)), (value, (0, 2, 1, 3)))
    )
    mixed = made("MatMul", made("Softmax", made("MatMul", q, k), axis=-1), v)
    merged = made("Transpose", mixed, perm=(0, 2, 1, 3))
    shape = made("Shape", query) if grouped else made.integers(0, 0, -1)
    made("Reshape", merged, shape, result=result)
    return made.nodes
