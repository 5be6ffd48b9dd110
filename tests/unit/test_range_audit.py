"""The range audit: magnitudes and small numbers of every value, found while the graph runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import EngineError

pytest.importorskip("onnx", reason="auditing engines needs onnx")

from facesdk_engines.precision_islands import Islands
from facesdk_engines.range_audit import Range, audit, table

X = np.float32([[0, 1, -300], [1e-5, 1e-8, -2e-9]])


def graph(save_graph: Any) -> Path:
    nodes = [
        ("Mul", ["x", "x"], ["square"]),
        ("Add", ["x", "mask"], ["masked"]),
        ("ReduceSum", ["square"], ["total"], {"keepdims": 0}),
        ("Shape", ["x"], ["size"]),
        ("Neg", ["x"], ["y"]),
    ]
    outputs = {"y": ["n", 3], "total": [], "masked": ["n", 3], "size": [2]}
    weights = {"mask": np.float32([0, 0, -np.inf])}
    return save_graph(nodes, {"x": ["n", 3]}, outputs, weights=weights, dtypes={"size": 7})


def ranges(save_graph: Any, **options: Any) -> dict[str, Range]:
    return {each.name: each for each in audit(graph(save_graph), {"x": X}, **options)}


def test_every_float_value_is_measured(save_graph: Any) -> None:
    found = ranges(save_graph)
    assert list(found) == ["x", "square", "masked", "total", "y"]
    assert [each.operator for each in found.values()] == ["input", "Mul", "Add", "ReduceSum", "Neg"]
    assert (found["y"].largest, found["square"].largest) == (300, 90000)
    assert found["total"].largest == pytest.approx(90001)


def test_small_numbers_are_counted_and_zero_is_not(save_graph: Any) -> None:
    """Of the six, 1e-5, 1e-8 and 2e-9 are below 2^-14, the last two below 2^-25 = 2.98e-8."""
    found = ranges(save_graph)["y"]
    assert (found.subnormal, found.zero) == (pytest.approx(3 / 6), pytest.approx(2 / 6))


def test_infinite_values_of_a_mask_are_no_overflow(save_graph: Any) -> None:
    found = ranges(save_graph)["masked"]
    assert (found.largest, found.overflows) == (1, False)


def test_what_overflows_and_where_it_runs(save_graph: Any) -> None:
    found = ranges(save_graph)
    assert [name for name, each in found.items() if each.overflows] == ["square", "total"]
    assert [name for name, each in found.items() if each.stays] == ["total"]
    everything = ranges(save_graph, islands=Islands(inputs=("x",)))
    assert all(each.stays for each in everything.values())


def test_nan_overflows(save_graph: Any) -> None:
    found = audit(graph(save_graph), {"x": X * np.float32([[1], [np.nan]])})
    assert next(each for each in found if each.name == "total").overflows
    assert "| nan |" in table(found, rows=1).splitlines()[2]


def test_the_table_shows_all_that_overflows(save_graph: Any) -> None:
    lines = table(audit(graph(save_graph), {"x": X}), rows=1).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| `total` | ReduceSum | fp32 | 9e+04 | 0.00% | 0.00% | overflows")
    assert "| Mul | fp16 | 9e+04 |" in lines[3]


def test_inputs_that_do_not_fit(save_graph: Any) -> None:
    with pytest.raises(EngineError, match="failed to run the graph"):
        audit(graph(save_graph), {"x": X[0]})
