"""Which attentions of a graph our kernel computes in a plan, and the file as the parser is to see it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from facesdk.kernels.library import HEAD_DIMS
from facesdk.plans import plugin

from ..attention import DOMAIN, OPERATOR
from . import images
from .options import Attention

_PLUGIN = ("plugin_namespace", "plugin_version")
# dtypes of the kernel, as in kernels/include/facesdk_attention.h
_DTYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}


@dataclasses.dataclass(frozen=True)
class Offer:
    """model: the ONNX file without its weights beside it.   nodes: names of those that the plugin computes."""

    model: bytes
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    heads: int
    dim: float
    scale: float
    dtype: str | None


def require(kind: Attention) -> None:
    """Raise MissingDependency where what `kind` needs is not built."""
    if kind == "plugin":
        plugin.plugin_library()
    elif kind == "aot":
        images.folder()


def offer(path: Path, kind: Attention) -> Offer:
    """The attentions of an ONNX file with a kernel; the others are left to the function that their nodes call."""
    model = onnx.load(path, load_external_data=False)
    # without data, since weights may be elsewhere: of those, shapes are enough
    known = {value.name: value.type.tensor_type for value in _values(onnx.shape_inference.infer_shapes(model))}
    names = []
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
            continue
        if _served(_sizes(node, known), kind):
            names.append(node.name)
        else:
            kept = [each for each in node.attribute if each.name not in _PLUGIN]
            del node.attribute[:]
            node.attribute.extend(kept)
    return Offer(model.SerializeToString(), tuple(names))


def register(trt: ModuleType, builder: Any, kind: Attention) -> None:
    """Make the plugin known to a builder; once in a process for "aot"."""
    if kind == "plugin":
        plugin.register(trt, builder)
    else:
        from .aot import register as register_aot

        register_aot(trt)


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.value_info, *model.graph.output]


def _sizes(node: onnx.NodeProto, known: dict[str, Any]) -> _Sizes:
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    tensors = [known[name] for name in node.input if name in known]
    widths = {tensor.shape.dim[-1].dim_value for tensor in tensors if len(tensor.shape.dim) == 3}
    dtypes = {_DTYPES.get(tensor.elem_type) for tensor in tensors}
    whole = len(tensors) == len(node.input) and len(widths) == len(dtypes) == 1
    dim, dtype = (widths.pop() / given["heads"], dtypes.pop()) if whole else (0.0, None)
    return _Sizes(given["heads"], dim, given["scale"], dtype)


def _served(sizes: _Sizes, kind: Attention) -> bool:
    if sizes.dtype is None or sizes.dim not in HEAD_DIMS:
        return False
    return kind == "plugin" or (
        sizes.dim in images.HEAD_DIMS and math.isclose(sizes.scale, sizes.dim**-0.5, rel_tol=1e-6)
    )
