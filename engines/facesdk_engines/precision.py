"""fp16 engines derived from fp32 ones: half precision with explicit casts, float32 where half loses the result."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from facesdk.card import Card
from facesdk.engine import Arrays, Engine
from facesdk.errors import ToleranceExceeded, UnsupportedOperator
from facesdk.verify import Deviation, compare

from .writing import write_engine

FLOAT: int = TensorProto.FLOAT
HALF: int = TensorProto.FLOAT16
#: statistics: sums of many terms or of squares, and what brings them back to the scale of their terms
STATISTICS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reciprocal", "Sqrt",
})  # fmt: skip
#: operators that stay float32; BatchNormalization is not among them: its statistics are constants
ISLANDS = STATISTICS | {
    "Cos", "CumSum", "Exp", "GlobalAveragePool", "GridSample", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Pow", "Range",
    "RMSNormalization", "Sin", "Softmax",
}  # fmt: skip
#: float32 too where they read a statistic: those that make another of it, and those that apply it
_CARRY, _APPLY = frozenset({"Add", "Clip", "Expand", "Max"}), frozenset({"Div", "Mul", "Sub"})
#: operators that read any precision alike
_READ_ANY = frozenset({"Cast", "Shape", "Size"})
#: smallest cosine between an output and the fp32 engine's with which a derived engine is written
MIN_COSINE = 0.999

log = logging.getLogger("facesdk")


def to_fp16(model: onnx.ModelProto, *, islands: Collection[str] = ISLANDS) -> onnx.ModelProto:
    """A copy whose float32 weights and arithmetic are float16, but for nodes of the operators in `islands`.

    Inputs and outputs keep names, types and shapes; a value is cast once at most in each direction.  Nodes without
    a float16 form in ONNX stay float32.  Raises UnsupportedOperator for subgraphs, ToleranceExceeded for weights
    beyond float16.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        _refuse_subgraphs(node)
    _constants_to_initializers(copy.graph)
    _Halving(copy, islands).apply()
    onnx.checker.check_model(copy, full_check=True)
    return copy


def derive_fp16(path: Path, target: Path, arrays: Arrays) -> tuple[Deviation, ...]:
    """The deviations from the fp32 engine at `path`, one per output, after writing its fp16 form to `target`.

    Both run on the processor on `arrays`, every fp16 value rounded, sums inside a node in fp32; the deviations stand
    in the new card.  Raises what `to_fp16` raises, and ToleranceExceeded for NaN, infinite values or a cosine below
    MIN_COSINE; then nothing is written.
    """
    model = to_fp16(onnx.load(path))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        trial = Path(folder) / target.name
        trial.write_bytes(_rounding(model).SerializeToString())
        with Engine.open(path, "cpu") as reference, Engine.open(trial, "cpu") as candidate:
            found = compare(reference, candidate, arrays)
    _check(path.name, found)
    errors = {each.output: each.max_in_std for each in found}
    write_engine(target, model, dataclasses.replace(Card.read(path), precision="fp16", deviation=errors))
    return found


def _check(name: str, found: Sequence[Deviation]) -> None:
    broken = [each for each in found if each.nan or each.infinite or not each.cosine >= MIN_COSINE]
    if broken:
        worst = max(broken, key=lambda each: (each.nan + each.infinite, -each.cosine))
        raise ToleranceExceeded(
            f"{name} in fp16 differs from fp32 in {', '.join(each.output for each in broken)}",
            cause=f"{worst.output}: {worst.nan} NaN, {worst.infinite} infinite values, cosine {worst.cosine:.5f} "
            f"(the limit is {MIN_COSINE})",
            remedy="use the fp32 engine: export without --fp16",
        )


def _rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for a processor, where ONNX Runtime would keep what lies between two fp16 nodes in fp32."""
    copy, kinds = onnx.ModelProto(), _types(model)
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for original in model.graph.node:
        node = copy.graph.node.add()
        node.CopyFrom(original)
        for index, name in enumerate(original.output):
            if kinds.get(name) == HALF:
                # a processor has Max in fp16, so the value has to be there in fp16; one alone would run in fp32 too
                stages = [f"{name}/0", f"{name}/1", name]
                node.output[index] = stages[0]
                copy.graph.node.extend(helper.make_node("Max", [a, a], [b]) for a, b in itertools.pairwise(stages))
    return copy


class _Halving:
    """One pass over a graph in its order.  `_names` holds, per float32 value of the original, its names by type."""

    def __init__(self, model: onnx.ModelProto, islands: Collection[str]) -> None:
        self._graph, self._islands = model.graph, islands
        self._versions = {each.domain: each.version for each in model.opset_import}
        self._types = _types(model)
        self._results = {value.name for value in self._graph.output}
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._fixed = self._results | {value.name for value in self._graph.input}  # these keep name and type
        produced = {name for node in self._graph.node for name in node.output}
        self._taken = self._types.keys() | produced
        floats = [name for name, kind in self._types.items() if kind == FLOAT]
        self._names = {name: {} if name in produced else {FLOAT: name} for name in floats}
        self._statistics: set[str] = set()
        self._nodes: list[NodeProto] = []
        self._flushed = 0

    def apply(self) -> None:
        for node in self._graph.node:
            self._place(node)
        used = {name for node in self._nodes for name in node.input} | self._fixed
        kept = [tensor for name, tensor in self._weights.items() if name in used]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend(kept)
        if self._flushed:
            log.info("%s: %d weights are zero in fp16", self._graph.name, self._flushed)

    def _place(self, node: NodeProto) -> None:
        reads, makes = self._parameters(node)
        any_type = node.op_type in _READ_ANY
        inputs = map(self._stored, node.input) if any_type else map(self._as, node.input, reads)
        changed = NodeProto()
        changed.CopyFrom(node)
        del changed.input[:], changed.output[:]
        changed.input.extend(inputs)
        self._nodes.append(changed)
        for name, kind in zip(node.output, makes, strict=True):
            changed.output.append(self._make(name, kind))

    def _parameters(self, node: NodeProto) -> tuple[list[int], list[int]]:
        """The type in which each float32 input is read and each float32 output is made."""
        reads, makes = [FLOAT] * len(node.input), [FLOAT] * len(node.output)
        known = all(name in self._types for name in (*node.input, *node.output) if name)
        version = self._versions.get(node.domain)
        if self._stays(node) or not known or not version or not onnx.defs.has(node.op_type, version, node.domain):
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

    def _stays(self, node: NodeProto) -> bool:
        island = node.op_type in self._islands
        applied = bool(self._statistics.intersection(node.input))
        if (island and node.op_type in STATISTICS) or (applied and node.op_type in _CARRY):
            self._statistics.update(node.output)
            return True
        return island or (applied and node.op_type in _APPLY)

    def _stored(self, name: str) -> str:
        return next(iter(self._names.get(name, {}).values()), name)

    def _as(self, name: str, kind: int) -> str:
        """The name under which a value is there in a type; a value that was not float32 has only its own."""
        names = self._names.get(name)
        if names is None:
            return name
        if kind not in names and name in self._weights and name not in self._fixed:
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
        values = numpy_helper.to_array(self._weights[name])
        with np.errstate(over="ignore", under="ignore"):
            half = values.astype(np.float16)
        if (np.isinf(half) & np.isfinite(values)).any():
            raise ToleranceExceeded(
                f"weight {name} does not fit into fp16",
                cause=f"its largest magnitude is {np.abs(values[np.isfinite(values)]).max():.3g}, fp16 ends at 65504",
                remedy="use the fp32 engine (export without --fp16), or add the operator that reads it to `islands`",
            )
        self._flushed += int(((half == 0) & (values != 0)).sum())
        fresh = self._fresh(name, HALF)
        self._weights[fresh] = numpy_helper.from_array(half, fresh)
        return fresh


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor in the graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def _variables(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """The type variable of each of `count` arguments; the last parameter may be variadic."""
    return [parameters[min(index, len(parameters) - 1)].type_str for index in range(count)]


def _refuse_subgraphs(node: NodeProto) -> None:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise UnsupportedOperator(
            f"node {node.name or node.output[0]} ({node.op_type}) holds a subgraph",
            cause="only graphs without branches and loops are derived in fp16",
            remedy="use the fp32 engine, or export the network without data-dependent control flow",
        )


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")]
    for node in constants:
        graph.node.remove(node)
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
