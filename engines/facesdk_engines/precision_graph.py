"""A float32 graph -> its fp16 form: explicit casts around the nodes that stay float32.  Weights are not needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from facesdk.errors import UnsupportedOperator

FLOAT: int = TensorProto.FLOAT
HALF: int = TensorProto.FLOAT16
#: operators that read any precision alike
_READ_ANY = frozenset({"Cast", "Shape", "Size"})
#: operators that ONNX does not define and that have fp16 kernels: every float input and output is fp16
_FOREIGN = frozenset({("com.microsoft", "MultiHeadAttention")})


@dataclasses.dataclass(frozen=True)
class Halved:
    """An fp16 graph.  weights: name of an initializer that has no values yet -> the float32 tensor that it halves."""

    model: onnx.ModelProto
    weights: Mapping[str, TensorProto]


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose constants are initializers; raises UnsupportedOperator for subgraphs."""
    for node in model.graph.node:
        _refuse_subgraphs(node)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _constants_to_initializers(copy.graph)
    return copy


def halved(model: onnx.ModelProto, stays: Collection[int], in_functions: Collection[str]) -> Halved:
    """The fp16 form of a prepared graph whose nodes of the indices `stays` stay float32.

    Inputs and outputs keep names, types and shapes; a value is cast once at most in each direction.  Nodes without
    a float16 form in ONNX stay float32.  in_functions: operators that stay float32 in the functions of the model.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    halving = _Halving(copy, stays)
    halving.apply()
    _halve_functions(copy, halving.foreign_halves, in_functions)
    return Halved(copy, halving.weights)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor in the graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


class _Halving:
    """One pass over a graph in its order.  `_names` holds, per float32 value of the original, its names by type."""

    def __init__(self, model: onnx.ModelProto, stays: Collection[int]) -> None:
        self._graph, self._stays = model.graph, stays
        self._versions = {each.domain: each.version for each in model.opset_import}
        self._foreign = _FOREIGN | {(each.domain, each.name) for each in model.functions}
        self._types = types_of(model)
        self._results = {value.name for value in self._graph.output}
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._fixed = self._results | {value.name for value in self._graph.input}  # these keep name and type
        produced = {name for node in self._graph.node for name in node.output}
        self._taken = self._types.keys() | produced
        floats = [name for name, kind in self._types.items() if kind == FLOAT]
        self._names = {name: {} if name in produced else {FLOAT: name} for name in floats}
        self._nodes: list[NodeProto] = []
        self._made: list[onnx.ValueInfoProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.foreign_halves: set[str] = set()  # values that nodes make in fp16 which ONNX does not define

    def apply(self) -> None:
        for index, node in enumerate(self._graph.node):
            self._place(node, index in self._stays)
        used = {name for node in self._nodes for name in node.input} | self._fixed
        kept = [tensor for name, tensor in self._tensors.items() if name in used]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)
        self._graph.value_info.extend(self._made)

    def _place(self, node: NodeProto, stays: bool) -> None:
        foreign = (node.domain, node.op_type) in self._foreign
        reads, makes = self._parameters(node, stays, foreign)
        inputs = map(self._stored, node.input) if node.op_type in _READ_ANY else map(self._as, node.input, reads)
        changed = NodeProto()
        changed.CopyFrom(node)
        del changed.input[:], changed.output[:]
        changed.input.extend(inputs)
        self._nodes.append(changed)
        for name, kind in zip(node.output, makes, strict=True):
            changed.output.append(made := self._make(name, kind))
            if foreign:  # no inference knows it
                self._made.append(helper.make_tensor_value_info(made, kind, None))
            if foreign and kind == HALF:
                self.foreign_halves.add(made)

    def _parameters(self, node: NodeProto, stays: bool, foreign: bool) -> tuple[list[int], list[int]]:
        """The type in which each float32 input is read and each float32 output is made."""
        reads, makes = [FLOAT] * len(node.input), [FLOAT] * len(node.output)
        known = all(name in self._types for name in (*node.input, *node.output) if name)
        version = self._versions.get(node.domain)
        if stays or not known or not version:
            return reads, makes
        if foreign:
            return [HALF] * len(reads), [HALF] * len(makes)
        if not onnx.defs.has(node.op_type, version, node.domain):
            return reads, makes
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        can = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
        read, made = _variables(schema.inputs, len(reads)), _variables(schema.outputs, len(makes))
        if not can & self._floats(node.input, read) & self._floats(node.output, made):
            return reads, makes
        tied = {*read}  # an output whose type no input decides, as of Cast, stays what it is
        return [HALF if v in can else FLOAT for v in read], [HALF if v in can & tied else FLOAT for v in made]

    def _floats(self, names: Sequence[str], variables: Sequence[str]) -> set[str]:
        return {variable for name, variable in zip(names, variables, strict=True) if self._types.get(name) == FLOAT}

    def _stored(self, name: str) -> str:
        return next(iter(self._names.get(name, {}).values()), name)

    def _as(self, name: str, kind: int) -> str:
        """The name under which a value is there in a type; a value that was not float32 has only its own."""
        names = self._names.get(name)
        if names is None:
            return name
        if kind not in names and name in self._tensors and name not in self._fixed:
            names[kind] = self._halved_weight(name)
        elif kind not in names:
            self._cast(self._stored(name), fresh := self._fresh(name, kind), kind)
            names[kind] = fresh
        return names[kind]

    def _make(self, name: str, kind: int) -> str:
        if name not in self._names:
            return name
        made = self._fresh(name, kind) if kind == HALF and name in self._results else name
        self._names[name][kind] = made
        if made != name:
            self._names[name][FLOAT] = name
            self._cast(made, name, FLOAT)
        return made

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))

    def _fresh(self, name: str, kind: int) -> str:
        fresh = f"{name}_{'fp16' if kind == HALF else 'fp32'}"
        while fresh in self._taken:
            fresh += "_"
        self._taken.add(fresh)
        return fresh

    def _halved_weight(self, name: str) -> str:
        fresh, original = self._fresh(name, HALF), self._tensors[name]
        self.weights[fresh] = original
        self._tensors[fresh] = TensorProto(name=fresh, data_type=HALF, dims=original.dims)
        return fresh


def _variables(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """The type variable of each of `count` arguments; the last parameter may be variadic."""
    return [parameters[min(index, len(parameters) - 1)].type_str for index in range(count)]


# -- functions --------------------------------------------------------------------------------------------


def _halve_functions(model: onnx.ModelProto, halves: Collection[str], stay: Collection[str]) -> None:
    """Give the functions that make the values `halves` a body in fp16; float32 nodes call a copy of the old one."""
    for function in list(model.functions):
        calls = [node for node in model.graph.node if (node.domain, node.op_type) == (function.domain, function.name)]
        single = [node for node in calls if node.output[0] not in halves]
        if len(single) == len(calls):
            continue
        if single:
            model.functions.add().CopyFrom(function)
            model.functions[-1].name = f"{function.name}Float32"
        for node in single:
            node.op_type = f"{function.name}Float32"
        body = [new for node in function.node for new in _in_body(node, node.op_type in stay)]
        del function.node[:]
        function.node.extend(body)


def _in_body(node: NodeProto, stays: bool) -> list[NodeProto]:
    """What stands for a node in an fp16 body: constants become fp16, operators that stay float32 are cast around."""
    constant = node.op_type == "Constant" and _is_float(node.attribute[0])
    if not constant and not stays:
        return [node]
    changed, result = NodeProto(), node.output[0]
    changed.CopyFrom(node)
    changed.output[0] = f"{result}_fp32"
    back = helper.make_node("Cast", [changed.output[0]], [result], to=HALF)
    if constant:
        return [changed, back]
    wide = [f"{result}_from_{name}" for name in node.input]
    casts = [helper.make_node("Cast", [a], [b], to=FLOAT) for a, b in zip(node.input, wide, strict=True)]
    del changed.input[:]
    changed.input.extend(wide)
    return [*casts, changed, back]


# -- before -----------------------------------------------------------------------------------------------


def _refuse_subgraphs(node: NodeProto) -> None:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise UnsupportedOperator(
            f"node {node.name or node.output[0]} ({node.op_type}) holds a subgraph",
            cause="only graphs without branches and loops are derived in fp16",
            remedy="use the fp32 engine, or export the network without data-dependent control flow",
        )


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    constants = [node for node in graph.node if node.op_type == "Constant" and _is_float(node.attribute[0])]
    for node in constants:
        graph.node.remove(node)
        graph.initializer.add().CopyFrom(_tensor(node.attribute[0]))
        graph.initializer[-1].name = node.output[0]


def _is_float(constant: onnx.AttributeProto) -> bool:
    return constant.t.data_type == FLOAT or constant.name in ("value_float", "value_floats")


def _tensor(constant: onnx.AttributeProto) -> TensorProto:
    value = helper.get_attribute_value(constant)
    return value if constant.HasField("t") else numpy_helper.from_array(np.asarray(value, np.float32))
