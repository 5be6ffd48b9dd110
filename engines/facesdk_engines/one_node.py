"""The smallest engine, `y = x + x`: what `facesdk doctor` tries every backend with."""

from __future__ import annotations

from onnx import TensorProto, helper

from facesdk.card import Card

CARD = Card(system="facesdk", engine="one-node", about="y = x + x, to try a backend", licence="Apache-2.0")


def one_node() -> bytes:
    """The ONNX file; `sdk/facesdk/data/one_node.onnx` holds exactly these bytes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "one-node", [x], [y])
    # IR 8 and operator set 13 are read by every runtime that FaceSDK supports
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, CARD.to_properties())
    return bytes(model.SerializeToString(deterministic=True))
