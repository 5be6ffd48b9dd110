"""Fixtures of all tests: a FACESDK_HOME of their own, and graphs made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.card import Card

pytest_plugins = ["tests.bundles", "tests.swap_bundle", "tests.synthesis_bundle", "tests.diffusion_bundle"]

Shapes = Mapping[str, Sequence[int | str | None]]
SaveGraph = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _facesdk_home(_session_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(_session_home))


@pytest.fixture
def save_graph(tmp_path: Path) -> SaveGraph:
    """Path of a float32 graph: nodes are (operator, inputs, outputs[, attributes]), tensors name -> shape."""
    onnx = pytest.importorskip("onnx")
    h, float32 = onnx.helper, onnx.TensorProto.FLOAT

    def save(
        nodes: Sequence[Any],
        inputs: Shapes,
        outputs: Shapes,
        *,
        name: str = "graph",
        weights: Mapping[str, Any] | None = None,
        dtypes: Mapping[str, int] | None = None,
        card: Card | None = None,
    ) -> Path:
        graph = h.make_graph(
            [
                h.make_node(op, ins, outs, **(attributes[0] if attributes else {}))
                for op, ins, outs, *attributes in nodes
            ],
            name,
            [h.make_tensor_value_info(n, (dtypes or {}).get(n, float32), shape) for n, shape in inputs.items()],
            [h.make_tensor_value_info(n, (dtypes or {}).get(n, float32), shape) for n, shape in outputs.items()],
            [onnx.numpy_helper.from_array(np.asarray(value), n) for n, value in (weights or {}).items()],
        )
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        h.set_model_props(model, card.to_properties() if card else {})
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return save
