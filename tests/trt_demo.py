"""A small step engine as a plan on the strict stand-in, arrays for it, and what equal to the bit means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.backends.tensorrt import TensorRt
from facesdk.card import Card
from facesdk.cuda.memory import DeviceArray
from facesdk.engine import Engine

from .trt_execution import Execution, key_of, write_plan

PROFILE = {"x": ((1, 4), (2, 4), (8, 4)), "noise": ((1, 4), (2, 4), (8, 4))}
_INT64 = 7  # onnx.TensorProto.INT64


def step_graph(save_graph: Any) -> Path:
    """next_x = tanh(x @ k + noise + the index-th row of noise), and the sum of x's squares."""
    nodes = [
        ("MatMul", ["x", "k"], ["p"]), ("Gather", ["noise", "index"], ["row"]), ("Add", ["p", "row"], ["s"]),
        ("Add", ["s", "noise"], ["t"]), ("Tanh", ["t"], ["next_x"]),
        ("ReduceSumSquare", ["x"], ["energy"], {"keepdims": 0}),
    ]  # fmt: skip
    inputs = {"x": ["n", 4], "noise": ["n", 4], "k": [4, 4], "index": []}
    outputs = {"next_x": ["n", 4], "energy": []}
    path: Path = save_graph(nodes, inputs, outputs, name="step", dtypes={"index": _INT64})
    return path


def arrays(rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """Inputs of one call."""
    values = np.random.default_rng(seed)
    x, noise, k = (values.standard_normal(shape, np.float32) for shape in ((rows, 4), (rows, 4), (4, 4)))
    return {"x": x, "noise": noise, "k": k, "index": np.array(seed % rows, np.int64)}


def series(steps: int, rows: int = 2) -> dict[str, Any]:
    """Arguments of one scan."""
    made = arrays(rows, steps)
    noise = np.random.default_rng(steps).standard_normal((steps, rows, 4), np.float32)
    xs = {"noise": noise, "index": np.arange(steps, dtype=np.int64) % rows}
    return {"carry": {"x": made["x"]}, "xs": xs, "constants": {"k": made["k"]}}


def open_plan(half: Execution, graph: Path, plan: Path, profile: Mapping[str, Any] = PROFILE, **facts: Any) -> Engine:
    """The engine of a new plan of that graph."""
    write_plan(plan, graph, profile, **facts)
    device = half.trt.__name__.replace("_", "-")
    return Engine(TensorRt(plan, key_of(plan, profile), graph, device), Card(engine="step"), graph, "test")


def same(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        values = got[name].numpy() if isinstance(got[name], DeviceArray) else got[name]
        assert values.dtype == array.dtype
        assert values.shape == array.shape
        assert values.tobytes() == array.tobytes(), name
