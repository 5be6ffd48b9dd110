"""The forms of a graph: what each runtime computes fastest, or takes at all.  Weights are not touched, nor needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnx import ModelProto

from .attention import DOMAIN, has_attention, with_function, with_mha, with_plain_ops
from .layer_norm import gives_statistics, with_own_statistics


def forms(model: ModelProto) -> dict[str, ModelProto]:
    """The graph for every device that is not named, under "default", and by device where it has a form of its own."""
    made = {"default": model}
    if has_attention(model):
        made = {"default": with_mha(model), "openvino": with_plain_ops(model), "tensorrt": with_function(model)}
    if any(gives_statistics(node.domain, node.op_type, len(node.output)) for node in model.graph.node):
        made["tensorrt"] = with_own_statistics(made.get("tensorrt", model))
    return made


def has_forms(nodes: Iterable[Any]) -> bool:
    """Whether a graph of these nodes, of onnx_ir, has several forms, which will share its weights."""
    return any(
        node.domain == DOMAIN or gives_statistics(node.domain, node.op_type, len(node.outputs)) for node in nodes
    )
