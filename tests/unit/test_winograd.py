"""Winograd's form of 3x3 convolutions: to rounding what the convolution computes, at any size; others left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx", reason="making engines needs onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from facesdk.errors import ToleranceExceeded  # noqa: E402
from facesdk_engines.winograd import (  # noqa: E402
    POINTS,
    Limits,
    Winograd,
    matrices,
    winograd_weights,
    with_winograd,
    write_matrices,
)

Arrays = dict[str, np.ndarray]
ANY = Limits(least_channels=1)
SAME = {"pads": [1, 1, 1, 1]}
FORMS = {"cpu": Winograd(bands=2), "openvino-fp32": Winograd(limits=Limits(least_channels=150))}


def graph(
    convolutions: Sequence[tuple[list[str], str, Mapping[str, Any]]], weights: Arrays, channels: tuple[int, int]
) -> Any:
    """Nodes Conv of (inputs, output, attributes), from x to y."""
    nodes = [helper.make_node("Conv", inputs, [output], **attributes) for inputs, output, attributes in convolutions]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, f"h_{name}", f"w_{name}"])
        for name, count in zip("xy", channels, strict=True)
    )
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "convolutions", [x], [y], stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rewritten(model: Any, limits: Limits = ANY, **options: Any) -> Any:
    """The Winograd form, checked, with its matrices inside."""
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    names = winograd_weights(model, limits)
    tensors = {name: numpy_helper.from_array(matrices(weights[name]), f"{name}_winograd") for name in names}
    form = with_winograd(model, tensors, **options)
    onnx.checker.check_model(form, full_check=True)
    return form


def run(model: Any, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """In float64, shift by shift."""
    height, width = x.shape[2:]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    shifts = [(i, j) for i in range(3) for j in range(3)]
    terms = (
        np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width], optimize=True)
        for i, j in shifts
    )
    return sum(terms) + (0 if bias is None else bias[:, None, None])


def problem(seed: int, shape: tuple[int, int, int, int], outputs: int) -> tuple[np.ndarray, Arrays]:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((outputs, shape[1], 3, 3), np.float32) / np.float32(3 * shape[1] ** 0.5)
    arrays = {"w": weight, "b": random.standard_normal(outputs, np.float32)}
    return random.standard_normal(shape, np.float32), arrays


# the last but two: planes of 512 and of 1024 tiles, to which `spread` adds a column
SHAPES = [
    ((1, 160, 8, 8), 160), ((2, 160, 7, 13), 170), ((3, 12, 9, 6), 20), ((2, 5, 1, 1), 3), ((1, 1, 4, 3), 1),
    ((1, 4, 64, 128), 6), ((2, 3, 127, 126), 4), ((1, 24, 33, 2), 8), ((3, 8, 2, 41), 8),
]  # fmt: skip


OPTIONS = {"plain": {}, "spread": {"spread": True}, "bands": {"bands": 4}, "spread bands": {"spread": True, "bands": 3}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("shape", "outputs"), SHAPES, ids=str)
def test_any_size(shape: tuple[int, int, int, int], outputs: int, options: dict[str, Any]) -> None:
    x, arrays = problem(sum(shape), shape, outputs)
    for names in (["w", "b"], ["w"]):
        model = graph([(["x", *names], "y", SAME)], {name: arrays[name] for name in names}, (shape[1], outputs))
        form = rewritten(model, **options)
        want = convolved(x, **dict(zip(("weight", "bias"), (arrays[name] for name in names), strict=False)))
        got = run(form, x)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-5 * want.std()
        assert operators(form)["MatMul"] == 2 * options.get("bands", 1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_openvino_computes_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    for shape, outputs in SHAPES[1:6]:
        x, arrays = problem(sum(shape), shape, outputs)
        form = rewritten(graph([(["x", "w", "b"], "y", SAME)], arrays, (shape[1], outputs)), **options)
        (tmp_path / "graph.onnx").write_bytes(form.SerializeToString())
        compiled = openvino.Core().compile_model(tmp_path / "graph.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        want = convolved(x, arrays["w"], arrays["b"])
        assert np.abs(compiled({"x": x})[0] - want).max() <= 1e-5 * want.std()


def test_the_points_round_less_than_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x, arrays = problem(0, (1, 160, 32, 32), 160)
    model, want = graph([(["x", "w", "b"], "y", SAME)], arrays, (160, 160)), convolved(x, arrays["w"], arrays["b"])

    def error() -> float:
        return float(np.sqrt(((run(rewritten(model), x) - want) ** 2).mean()))

    ours = error()
    monkeypatch.setattr("facesdk_engines.winograd.POINTS", (0, 1, -1, 2, -2))
    assert len(POINTS) == 5
    assert ours < 0.7 * error()


def test_convolutions_that_share_a_weight() -> None:
    x, arrays = problem(1, (2, 6, 10, 11), 6)
    chain = [(["x", "w", "b"], "middle", SAME), (["middle", "w", "b"], "y", SAME)]
    form = rewritten(graph(chain, arrays, (6, 6)))
    assert [each.name for each in form.graph.initializer].count("w_winograd") == 1
    want = convolved(convolved(x, arrays["w"], arrays["b"]), arrays["w"], arrays["b"])
    assert np.abs(run(form, x) - want).max() <= 2e-5 * want.std()


def test_a_weight_that_others_need_too_stays() -> None:
    x, arrays = problem(2, (1, 6, 8, 8), 6)
    both = [(["x", "w", "b"], "middle", SAME), (["middle", "w"], "y", {"strides": [2, 2]})]
    form = rewritten(graph(both, arrays, (6, 6)))
    assert {"w", "w_winograd"} < {each.name for each in form.graph.initializer}
    want = convolved(convolved(x, arrays["w"], arrays["b"]), arrays["w"])[:, :, 1:-1:2, 1:-1:2]
    assert np.abs(run(form, x) - want).max() <= 2e-5 * want.std()


LEFT = {
    "stride": (SAME | {"strides": [2, 2]}, (6, 6, 3, 3)),
    "no padding": ({}, (6, 6, 3, 3)),
    "padding on one side": ({"pads": [0, 0, 2, 2]}, (6, 6, 3, 3)),
    "named padding": ({"auto_pad": "SAME_UPPER"}, (6, 6, 3, 3)),
    "dilation": (SAME | {"dilations": [2, 2]}, (6, 6, 3, 3)),
    "groups": (SAME | {"group": 2}, (6, 3, 3, 3)),
    "1x1": (SAME, (6, 6, 1, 1)),
    "3x1": (SAME, (6, 6, 3, 1)),
    "5x5": (SAME, (6, 6, 5, 5)),
}


@pytest.mark.parametrize(("attributes", "shape"), LEFT.values(), ids=list(LEFT))
def test_what_is_left_alone(attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    model = graph([(["x", "w"], "y", attributes)], {"w": weight}, (6, 6))
    assert winograd_weights(model, ANY) == []
    given = with_winograd(model, {"w": numpy_helper.from_array(np.zeros((36, 6, 6), np.float32), "w_winograd")})
    if attributes != SAME:  # there the size of the kernel decides, which is looked up with the weights
        assert given == model


def test_weights_that_are_not_fixed() -> None:
    """Computed ones, a caller's, and those that a caller may replace."""
    _, arrays = problem(3, (1, 6, 8, 8), 6)
    computed = graph([(["x", "twice"], "y", SAME)], {"w": arrays["w"]}, (6, 6))
    computed.graph.node.insert(0, helper.make_node("Add", ["w", "w"], ["twice"]))
    replaceable = graph([(["x", "w"], "y", SAME)], {"w": arrays["w"]}, (6, 6))
    replaceable.graph.input.add().CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 6, 3, 3]))
    given = graph([(["x", "w"], "y", SAME)], {}, (6, 6))
    given.graph.input.add().CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 6, 3, 3]))
    assert [winograd_weights(each, ANY) for each in (computed, replaceable, given)] == [[], [], []]
    double = graph([(["x", "w"], "y", SAME)], {"w": arrays["w"].astype(np.float64)}, (6, 6))
    assert winograd_weights(double, ANY) == []


def test_limits() -> None:
    _, arrays = problem(4, (1, 6, 8, 8), 9)
    model = graph([(["x", "w"], "y", SAME)], {"w": arrays["w"]}, (6, 9))
    within = [Limits(least, most) for least, most in ((6, 54), (7, 54), (6, 53))]
    assert [winograd_weights(model, limits) for limits in within] == [["w"], [], []]
    before = model.SerializeToString()
    assert with_winograd(model, {}) == model
    assert rewritten(model) != model
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("side", "columns"), [(64, 16), (128, 33), (256, 65)])
def test_no_planes_of_whole_pages(side: int, columns: int) -> None:
    """OpenVINO's change of layout is slow on planes that are multiples of 2 KiB."""
    x, arrays = problem(0, (1, 2, side, side), 2)
    form = rewritten(graph([(["x", "w"], "y", SAME)], {"w": arrays["w"]}, (2, 2)), spread=True)
    points = next(node.output[0] for node in form.graph.node if node.op_type == "Conv")
    form.graph.output.insert(0, helper.make_empty_tensor_value_info(points))
    assert run(form, x).shape == (2, 36, side // 4, columns)


def test_bands_are_for_few_channels() -> None:
    for channels, bands in ((256, 4), (257, 1)):
        weight = np.zeros((8, channels, 3, 3), np.float32)
        form = rewritten(graph([(["x", "w"], "y", SAME)], {"w": weight}, (channels, 8)), bands=4)
        assert operators(form)["DepthToSpace"] == bands


def test_matrices_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Read from beside the graph, written in turn; a form needs neither to be made."""
    x, arrays = problem(5, (2, 40, 9, 9), 40)
    arrays["v"] = -arrays["w"]
    chain = [(["x", "w", "b"], "middle", SAME), (["middle", "v"], "y", SAME)]
    path = tmp_path / "graph.onnx"
    onnx.save(
        graph(chain, arrays, (40, 40)), path, save_as_external_data=True, location="graph.data", size_threshold=1024
    )
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString()
    tensors = write_matrices(model, winograd_weights(model, ANY), tmp_path / "winograd.data")
    assert model.SerializeToString() == before
    places = [{entry.key: entry.value for entry in each.external_data} for each in tensors.values()]
    assert [int(place["offset"]) % (1 << 16) for place in places] == [0, 0]
    form = tmp_path / "form.onnx"
    form.write_bytes(with_winograd(model, tensors).SerializeToString())
    (tmp_path / "graph.data").unlink()  # nothing of it is left
    onnx.checker.check_model(form, full_check=True)
    session = onnxruntime.InferenceSession(form, providers=["CPUExecutionProvider"])
    want = convolved(convolved(x, arrays["w"], arrays["b"]), arrays["v"])
    assert np.abs(session.run(None, {"x": x})[0] - want).max() <= 2e-5 * want.std()


# -- engines ----------------------------------------------------------------------------------------------


def part(channels: int) -> Any:
    torch = pytest.importorskip("torch", reason="exporting needs torch")
    from facesdk.card import Card
    from facesdk_export.onnx_export import Part

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.SiLU())
    inputs = {"x": torch.randn(2, channels, 10, 7)}
    return Part(module, inputs, ("y",), Card(engine="net"), {0: "n", 2: "h", 3: "w"}, winograd=FORMS)


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_forms_of_an_engine(device: Any, tmp_path: Path) -> None:
    if device == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    made = part(160)
    from facesdk.card import Card
    from facesdk.engine import Engine
    from facesdk_export.onnx_export import write_part

    (deviation,), forms = write_part(made, tmp_path / "net.onnx")
    assert forms == {"default": "net.onnx", "cpu": "net.cpu.onnx", "openvino-fp32": "net.openvino-fp32.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net.cpu.onnx", "net.onnx", "net.onnx.data", "net.openvino-fp32.onnx", "net.winograd.data",
    ]  # fmt: skip
    assert deviation.max_in_std < 1e-5
    cards = [Card.read(tmp_path / file).deviation["y"] for file in forms.values()]
    assert all(0 < each < 2e-5 for each in cards)
    assert len(set(cards)) > 1  # each form's own
    paths = {name: tmp_path / file for name, file in forms.items()}
    x = made.inputs["x"][:, :, :9].contiguous()
    with Engine.open(paths.pop("default"), device, forms=paths) as engine:
        got = engine(x=x.numpy())["y"]
    want = made.module.double()(x.double()).detach().numpy()
    assert np.abs(got - want).max() <= 1e-5 * want.std()


def test_an_engine_without_convolutions_that_are_worth_it(tmp_path: Path) -> None:
    made = part(8)
    from facesdk_export.onnx_export import write_part

    assert write_part(made, tmp_path / "net.onnx")[1] == {"default": "net.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_each_form_has_limits_of_its_own(tmp_path: Path) -> None:
    made = part(140)
    from facesdk_export.onnx_export import write_part

    assert write_part(made, tmp_path / "net.onnx")[1] == {"default": "net.onnx", "cpu": "net.cpu.onnx"}


def test_every_form_is_held_against_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = part(160)
    from facesdk_export import onnx_export

    def wrong(*given: Any, **options: Any) -> Any:
        form = with_winograd(*given, **options)
        back = next(each for each in form.graph.initializer if each.name == "winograd_back")
        back.CopyFrom(numpy_helper.from_array(np.float32(1.01) * numpy_helper.to_array(back), back.name))
        return form

    monkeypatch.setattr(onnx_export, "with_winograd", wrong)
    with pytest.raises(ToleranceExceeded):
        onnx_export.write_part(made, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
