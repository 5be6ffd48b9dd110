"""The attention kernel as an ahead-of-time plugin of `tensorrt.plugin`: its image becomes part of the plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from facesdk.errors import EngineError

from ..attention import DOMAIN, OPERATOR
from .images import THREADS, Image, tiles

_ID = f"{DOMAIN}::{OPERATOR}"
_DTYPES = {"HALF": "fp16", "BF16": "bf16"}


def register(trt: ModuleType) -> None:
    """Register the plugin in this process, where that has not been done; raises EngineError before TensorRT 10.9."""
    if not hasattr(trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS"):
        raise EngineError(
            f"TensorRT {trt.__version__} has no ahead-of-time plugins",
            cause="they came with 10.9",
            remedy="update TensorRT, or build with --attention plugin",
        )
    plugins: Any = importlib.import_module(f"{trt.__name__}.plugin")
    if hasattr(getattr(plugins.op, DOMAIN, None), OPERATOR):
        return

    inputs = dict.fromkeys(("query", "key", "value"), plugins.TensorDesc) | {"heads": int}
    outputs = {"outputs": tuple[plugins.TensorDesc]}
    image = tuple[str, str, plugins.KernelLaunchParams, plugins.SymIntExprs]

    def describe(query: Any, key: Any, value: Any, heads: int) -> Any:
        return query.like()

    def tune(query: Any, key: Any, value: Any, heads: int, outputs: Any) -> Any:
        kinds = ", ".join([_DTYPES[query.dtype.name].upper()] * 4)
        return [plugins.AutoTuneCombination(kinds, "LINEAR", list(tiles(_head_dim(query, heads))))]

    def implement(query: Any, key: Any, value: Any, heads: int, outputs: Any, tactic: int) -> Any:
        image = Image(_DTYPES[query.dtype.name], _head_dim(query, heads), tactic)
        return image.entry, image.read(), *_launch(plugins, image, query.shape_expr, key.shape_expr, heads)

    plugins.register(_ID)(_annotated(describe, plugins.TensorDesc, inputs))
    plugins.autotune(_ID)(_annotated(tune, list[plugins.AutoTuneCombination], inputs | outputs))
    plugins.aot_impl(_ID)(_annotated(implement, image, inputs | outputs | {"tactic": int}))


def _annotated(function: Callable[..., Any], result: Any, parameters: dict[str, Any]) -> Callable[..., Any]:
    """The function with annotations that are objects of the library, which looks at them."""
    function.__annotations__ = {**parameters, "return": result}
    return function


def _head_dim(query: Any, heads: int) -> int:
    return int(query.shape_expr[2].constant_value()) // heads


def _launch(plugins: Any, image: Image, query: Any, key: Any, heads: int) -> tuple[Any, Any]:
    """Grid, and the integers of the kernel: query rows that share a row of keys follow each other, and become one."""
    queries = query[0] * query[1] // key[0]
    launch = plugins.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = plugins.cdiv(queries, image.queries), heads, key[0]
    launch.block_x, launch.shared_mem = THREADS, image.shared_bytes
    integers = plugins.SymIntExprs(3)
    for index, value in enumerate((queries, key[1], heads)):
        integers[index] = plugins.SymInt32(value)
    return launch, integers
