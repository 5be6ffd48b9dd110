"""Nodes of a graph in the making."""

from __future__ import annotations

from typing import Any

from onnx import NodeProto, helper


class Nodes:
    """A call appends a node and is the name of its result, which begins with `stem` where it is given none."""

    def __init__(self, stem: str) -> None:
        self.nodes: list[NodeProto] = []
        self._stem = stem

    def __call__(self, operator: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        result = result or f"{self._stem}_part{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return result

    def integers(self, *values: int) -> str:
        return self("Constant", value_ints=values)
