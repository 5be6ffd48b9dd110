"""A module that differentiates, as a graph that only computes: what is left of autograd is plain operators."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from facesdk.errors import ConversionError, ToleranceExceeded

from .gradient_rules import rules

aten = torch.ops.aten
#: largest relative L2 distance from autograd.  A wrong rule is off by its whole contribution; rounding turns a few
#: kinks (ReLU, the picture's clipping): full-size networks with random weights were seen at 0.016
TOLERANCE = 0.05


def plain_graph(step: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    """The module's `forward`, autograd calls in it included, as a graph of forward operators with a free axis 0.

    inputs  name -> example in the order of `forward`, two rows or more; the graph is held against the module on them.
    Raises ConversionError where an operator has no rule, ToleranceExceeded where the graph computes something else.
    """
    if any(len(tensor) < 2 for tensor in inputs.values()):
        raise ConversionError("an example input has one row", remedy="give two or more: a size of 1 would stay fixed")
    arguments = tuple(inputs.values())

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = step(*tensors)
        return outputs

    graph = make_fx(forward, rules(), tracing_mode="symbolic", _allow_non_fake_inputs=True)(*_distinct(arguments))
    left = sorted({str(node.target) for node in graph.graph.nodes if "backward" in str(node.target)})
    if left:
        raise ConversionError(
            f"no rule for {', '.join(left)}",
            cause="an inference graph cannot hold backward operators",
            remedy="use other layers, or add a rule to facesdk_export.gradient_rules",
        )
    _tidy(graph)
    _check(graph, step, arguments)
    return graph


def _distinct(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The examples with a number of rows that no other axis has: the tracer takes equal sizes for one."""
    others = {size for tensor in arguments for size in tensor.shape[1:]}
    rows = next(count for count in itertools.count(2) if count not in others)
    return tuple(tensor[torch.arange(rows) % len(tensor)] for tensor in arguments)


def _tidy(graph: GraphModule) -> None:
    """Make every `view` a `reshape` whose one free size is -1; nothing in place, no copies, no expression twice."""
    seen: dict[tuple[object, ...], Node] = {}
    for node in graph.graph.nodes:
        node.target = _forward_operator(node.target)
        if node.target == aten.reshape.default:
            free = [axis for axis, size in enumerate(node.args[1]) if isinstance(size, Node) or size == -1]
            if len(free) == 1:
                node.update_arg(1, [-1 if axis in free else size for axis, size in enumerate(node.args[1])])
        same = node
        if node.target in (aten.detach.default, aten.clone.default):
            same = node.args[0]
        elif node.op in ("call_function", "get_attr"):
            same = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
    _part_transposes(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _part_transposes(graph: GraphModule) -> None:
    """Multiply square matrices of gradients by 2, and what they are applied to by 1/2: exact, and folded when loaded.

    OpenVINO 2026.4 takes a square weight and its transpose in one graph for the same matrix.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default):
        values, matrix = node.args
        if len({*matrix.meta["val"].shape}) == 1:
            with graph.graph.inserting_before(node):
                half, twice = (
                    graph.graph.call_function(aten.mul.Tensor, pair) for pair in ((values, 0.5), (matrix, 2.0))
                )
            node.args = (half, twice)


def _forward_operator(target: Any) -> Any:
    """The operator to write for a recorded one."""
    if target in (aten.view.default, aten._unsafe_view.default):
        return aten.reshape.default  # a recorded view holds for the recorded memory layout only
    if isinstance(target, OpOverload) and target._schema.name.endswith("_"):
        # whatever reads the tensor later was recorded as reading this result
        return getattr(getattr(aten, target._schema.name.removeprefix("aten::")[:-1]), target._overloadname)
    return target


def _check(graph: nn.Module, step: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    for index, (want, got) in enumerate(zip(step(*arguments), graph(*arguments), strict=True)):
        distance = float((got - want).norm() / want.norm().clamp_min(1e-30))
        if not distance <= TOLERANCE:
            raise ToleranceExceeded(
                f"output {index} of the plain graph is off by {distance:.2e} from autograd's",
                cause=f"a rule computes something else for these networks; the limit is {TOLERANCE:g}",
                remedy="compare the rules of facesdk_export.gradient_rules with autograd, layer by layer",
            )
