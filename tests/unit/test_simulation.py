"""fp16 on a processor: every value is rounded, and what costs most is found by halving."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="deriving engines needs onnx")

from facesdk_engines import simulation  # noqa: E402
from facesdk_engines.precision import derive_fp16, to_fp16  # noqa: E402
from facesdk_engines.precision_islands import Islands  # noqa: E402
from facesdk_engines.processor import run  # noqa: E402
from facesdk_engines.simulation import costliest, rounding, simulate  # noqa: E402

RNG = np.random.default_rng(5)
X = RNG.uniform(0.5, 1.5, (4, 8)).astype(np.float32)


def chain(save_graph: Any) -> Path:
    """Eight harmless nodes, and two in their midst that fp16 does harm to: 1000 is added and taken away."""
    names = ["x", *(f"v{index}" for index in range(9)), "y"]
    operators = ["Sigmoid", "Neg", "Abs", "Tanh", "Add", "Sub", "Neg", "Abs", "Relu", "Sqrt"]
    nodes = [
        (operator, [before, "big"] if operator in ("Add", "Sub") else [before], [after])
        for operator, (before, after) in zip(operators, itertools.pairwise(names), strict=True)
    ]
    path: Path = save_graph(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, weights={"big": np.float32(1000)})
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.save(model, path)
    return path


def test_every_value_is_rounded(save_graph: Any) -> None:
    """Step by step as numpy computes in fp16; the processor alone would carry more digits between the nodes."""
    nodes = [("Mul", ["x", "w"], ["a"]), ("Mul", ["a", "w"], ["b"]), ("Sub", ["b", "x"], ["y"])]
    path = save_graph(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, weights={"w": np.float32(1.01)})
    model = rounding(to_fp16(onnx.load(path)))
    x, w = X.astype(np.float16), np.float16(1.01)
    np.testing.assert_array_equal(run(model, path.parent, {"x": X})["y"], x * w * w - x)


def test_a_simulation_is_what_deriving_measures(save_graph: Any, tmp_path: Path) -> None:
    path = chain(save_graph)
    before = sorted(tmp_path.iterdir())
    assert simulate(path, {"x": X}) != simulate(path, {"x": X}, Islands(nodes=("make_v4", "make_v5")))
    assert sorted(tmp_path.iterdir()) == before
    assert simulate(path, {"x": X}) == derive_fp16(path, tmp_path / "half.onnx", {"x": X})


def test_what_is_out_of_range_stays_fp32_here_too(save_graph: Any, tmp_path: Path) -> None:
    nodes = [("Mul", ["x", "w"], ["a"]), ("Mul", ["a", "w"], ["b"]), ("Div", ["b", "w"], ["c"]), ("Tanh", ["c"], ["y"])]
    path = save_graph(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, weights={"w": np.float32(30000)})
    arrays = {"x": X / 10000}  # the second product is 90000 and more
    (found,) = simulate(path, arrays)
    assert (found.nan, found.infinite) == (0, 0)
    assert (found,) == derive_fp16(path, tmp_path / "half.onnx", arrays)
    (rest,) = costliest(path, arrays, runs=1)
    assert rest.operators == {"Mul": 1, "Tanh": 1}


def test_all_nodes_together_cost_what_the_form_does(save_graph: Any) -> None:
    path = chain(save_graph)
    (whole,), (found,) = costliest(path, {"x": X}, runs=1), simulate(path, {"x": X})
    assert (whole.first, whole.last, whole.max_in_std) == ("make_v0", "make_v8", found.max_in_std)


def test_the_worst_is_halved_first(save_graph: Any) -> None:
    """Of nine nodes in three cuts: four and five, two and three, one and one."""
    costs = costliest(chain(save_graph), {"x": X}, runs=7)
    assert sorted(sum(cost.operators.values()) for cost in costs) == [1, 1, 3, 4]
    assert (costs[0].first, costs[0].last) == ("make_v4", "make_v4")


def test_the_costliest_nodes_are_found(save_graph: Any) -> None:
    path = chain(save_graph)
    costs = costliest(path, {"x": X})
    assert [cost.max_in_std for cost in costs] == sorted((cost.max_in_std for cost in costs), reverse=True)
    assert sum(sum(cost.operators.values()) for cost in costs) == 9  # the root stays float32
    assert (costs[0].first, costs[0].last, costs[0].operators) == ("make_v4", "make_v4", {"Add": 1})
    assert costs[0].max_in_std > 100 * costs[-1].max_in_std
    (mended,) = simulate(path, {"x": X}, Islands(nodes=("make_v4", "make_v5")))
    (broken,) = simulate(path, {"x": X})
    assert mended.max_in_std < broken.max_in_std / 50


@pytest.mark.parametrize(("runs", "spans"), [(1, 1), (3, 2), (6, 3), (99, 9)])
def test_no_more_forms_are_simulated_than_asked_for(
    save_graph: Any, monkeypatch: pytest.MonkeyPatch, runs: int, spans: int
) -> None:
    done, deviations = [], simulation.deviations
    monkeypatch.setattr(simulation, "deviations", lambda *args: done.append(1) or deviations(*args))
    assert len(costliest(chain(save_graph), {"x": X}, runs=runs)) == spans
    assert len(done) <= runs
