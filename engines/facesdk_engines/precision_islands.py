"""Which nodes of a graph stay float32 in its fp16 form: by operator, by what they read, by name, by range."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Mapping

import onnx
from onnx import NodeProto, TensorProto

from facesdk.errors import UsageError

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
#: layers, where they read weights: the arithmetic that fp16 is for
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclasses.dataclass(frozen=True)
class Islands:
    """What stays float32 in an fp16 graph.

    operators  by type; what applies a statistic of theirs stays with it.
    inputs     inputs of the graph: what is computed of them, as far as the next layer with weights.
    nodes      patterns of node names, as of a shell: "node_conv2d_6?", "*".
    """

    operators: Collection[str] = ISLANDS
    inputs: Collection[str] = ()
    nodes: Collection[str] = ()

    def of(self, graph: onnx.GraphProto, types: Mapping[str, int], beyond: Collection[str] = ()) -> frozenset[int]:
        """Indices of the nodes that stay float32; those that read or make a value named in `beyond` do too.

        types: element type of every value.  Raises UsageError for an input or a pattern that the graph does not have.
        """
        self._check(graph)
        weights = {tensor.name for tensor in graph.initializer}
        statistics: set[str] = set()
        from_inputs = set(self.inputs)
        found = set()
        for index, node in enumerate(graph.node):
            named = any(fnmatch.fnmatchcase(node.name, pattern) for pattern in self.nodes)
            ranged = not _is_layer(node, weights) and not from_inputs.isdisjoint(node.input)
            if ranged:  # sizes and indices that are made of it are none of its values
                from_inputs.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
            far = any(name in beyond for name in (*node.input, *node.output))
            if self._by_operator(node, statistics) or named or ranged or far:
                found.add(index)
        return frozenset(found)

    def _by_operator(self, node: NodeProto, statistics: set[str]) -> bool:
        island = node.op_type in self.operators
        applied = not statistics.isdisjoint(node.input)
        if (island and node.op_type in STATISTICS) or (applied and node.op_type in _CARRY):
            statistics.update(node.output)
            return True
        return island or (applied and node.op_type in _APPLY)

    def _check(self, graph: onnx.GraphProto) -> None:
        names = [node.name for node in graph.node]
        unknown = sorted(set(self.inputs) - {value.name for value in graph.input})
        unknown += [pattern for pattern in self.nodes if not fnmatch.filter(names, pattern)]
        if unknown:
            raise UsageError(
                f"the islands name {', '.join(unknown)}, which graph {graph.name} does not have",
                cause="they stay float32 by the names of the graph's inputs and nodes",
                remedy="take the names from the exported file: facesdk inspect FILE lists its inputs",
            )


def _is_layer(node: NodeProto, weights: Collection[str]) -> bool:
    return node.op_type in _LAYERS and any(name in weights for name in node.input)
