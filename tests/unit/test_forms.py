"""The forms of a graph: which it has, that they compute the same, and that they share their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx", reason="making engines needs onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from facesdk_engines.attention import DOMAIN, OPERATOR  # noqa: E402
from facesdk_engines.forms import forms  # noqa: E402

SHAPE = (3, 5, 8)
DEFAULTS: dict[str, Any] = {}
GIVEN = {"axis": -2, "epsilon": 0.5}


def layer_norm(results: list[str], attributes: dict[str, Any]) -> Any:
    """A graph of x (n, 5, 8) -> a layer norm's results of these names; "" is one that nobody wants."""
    random, axis = np.random.default_rng(0), attributes.get("axis", -1)
    whole, reduced = ["n", *SHAPE[1:]], SHAPE[axis:]
    sizes = [whole, *[whole[:axis] + [1] * len(reduced)] * 2]
    weights = {name: random.normal(size=reduced).astype(np.float32) for name in ("scale", "bias")}
    node = helper.make_node("LayerNormalization", ["x", *weights], results, "norm", **attributes)
    x, *values = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(["x", *results], [whole, *sizes], strict=False)
        if name
    )
    graph = helper.make_graph(
        [node], "norm", [x], values, [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: Any, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("attributes", [DEFAULTS, GIVEN], ids=["defaults", "given"])
@pytest.mark.parametrize("results", [["y", "mean", "inverse"], ["y", "mean"], ["y", "", "inverse"]], ids=",".join)
def test_statistics_beside_the_layer_norm(results: list[str], attributes: dict[str, Any]) -> None:
    model = layer_norm(results, attributes)
    before = model.SerializeToString()
    made = forms(model)
    assert list(made) == ["default", "tensorrt"]
    assert made["default"] is model
    assert model.SerializeToString() == before
    onnx.checker.check_model(made["tensorrt"], full_check=True)
    (norm,) = [node for node in made["tensorrt"].graph.node if node.op_type == "LayerNormalization"]
    assert list(norm.output) == ["y"]
    x = np.random.default_rng(1).normal(2, 3, SHAPE).astype(np.float32)
    for name, want, got in zip(filter(None, results), run(model, x), run(made["tensorrt"], x), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6, err_msg=name)


def test_other_graphs_have_one_form() -> None:
    plain = layer_norm(["y"], DEFAULTS)
    assert list(forms(plain)) == ["default"]
    assert forms(plain)["default"] is plain


def test_forms_of_attention_and_of_statistics_go_together() -> None:
    model = layer_norm(["y", "mean"], DEFAULTS)
    model.graph.node.append(
        helper.make_node(OPERATOR, ["y", "y", "y"], ["z"], "attention", domain=DOMAIN, heads=2, scale=0.5)
    )
    made = forms(model)
    assert list(made) == ["default", "openvino", "tensorrt"]
    found = {name: {node.op_type: len(node.output) for node in form.graph.node} for name, form in made.items()}
    assert [of["LayerNormalization"] for of in found.values()] == [2, 2, 1]
    assert [OPERATOR in of for of in found.values()] == [False, False, True]
    assert "MultiHeadAttention" in found["default"]


def test_a_gradient_has_a_form_for_tensorrt_beside_the_same_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    from facesdk.card import Card
    from facesdk.engine import Engine
    from facesdk_export.gradients import plain_graph
    from facesdk_export.onnx_export import Part, write_part

    class Step(torch.nn.Module):
        """A transformer's two norms, and the gradient of their sum."""

        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
            self.network.requires_grad_(False)

        def forward(self, x: Any) -> Any:
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                out = self.network(x)
                (gradient,) = torch.autograd.grad((out**3).sum(), x)
            return gradient, out.detach()

    torch.manual_seed(0)
    step, inputs = Step(), {"x": torch.randn(4, 5, 8)}
    part = Part(plain_graph(step, inputs), inputs, ("gradient", "out"), Card(engine="step"), reference=step)
    _, files = write_part(part, tmp_path / "step.onnx")
    assert files == {"default": "step.onnx", "tensorrt": "step.tensorrt.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step.onnx", "step.onnx.data", "step.tensorrt.onnx"]
    x, results = np.random.default_rng(2).normal(size=(3, 5, 8)).astype(np.float32), {}
    for name, file in files.items():
        with Engine.open(tmp_path / file, "cpu") as engine:
            results[name] = engine(x=x)
        norms = [node for node in onnx.load(tmp_path / file).graph.node if node.op_type == "LayerNormalization"]
        assert [len(node.output) for node in norms] == ([3, 3] if name == "default" else [1, 1])
    for output, want in results["default"].items():
        np.testing.assert_allclose(results["tensorrt"][output], want, rtol=1e-4, atol=1e-5, err_msg=output)
