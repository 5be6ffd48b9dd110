"""Packs of insightface: every kind of network told apart, its engine's signature, packs that are not what they say."""

from __future__ import annotations

import io
import logging
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.annotation import scrfd
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.encoder import Encoder
from facesdk.errors import ConversionError
from facesdk.store import Store
from facesdk_engines.insightface import builder, bundle_name

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
h, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (3, 112, 112, 3), np.uint8)
STRIDES = {6: (8, 16, 32), 9: (8, 16, 32), 10: (8, 16, 32, 64, 128), 15: (8, 16, 32, 64, 128)}


def serialised(
    nodes: Sequence[Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any], weights: Mapping[str, Any],
    *, opset: int = 11, ir: int = 6, declared: bool = False,
) -> bytes:  # fmt: skip
    """An ONNX file; `declared`: with every weight as an input too, as old exporters wrote."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    shapes = {**inputs, **({name: np.shape(value) for name, value in weights.items()} if declared else {})}
    graph = h.make_graph(
        list(nodes), "network",
        [h.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()],
        [h.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        tensors,
    )  # fmt: skip
    return bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=ir).SerializeToString())


def one_picture(size: int, width: int, first: Sequence[str] = (), **form: Any) -> bytes:
    """The mean of every channel, projected to `width` values; `first`: operators before that."""
    nodes, value = [], "data"
    weights: dict[str, Any] = {"projection": RNG.normal(size=(3, width)).astype(np.float32)}
    scalars = {"Sub": 127.5, "Mul": 1 / 128, "Div": 128.0}
    for number, operator in enumerate(first):
        feeds = [value]
        if operator == "BatchNormalization":
            weights |= {
                name: np.full(3, fill, np.float32) for name, fill in (("g", 0.01), ("b", 0), ("m", 120), ("v", 1))
            }
            feeds += ["g", "b", "m", "v"]
        elif operator in scalars:
            weights[f"scalar{number}"] = np.array([scalars[operator]], np.float32)
            feeds.append(f"scalar{number}")
        nodes.append(h.make_node(operator, feeds, [f"v{number}"]))
        value = f"v{number}"
    nodes += [
        h.make_node("GlobalAveragePool", [value], ["means"]),
        h.make_node("Flatten", ["means"], ["flat"]),
        h.make_node("MatMul", ["flat", "projection"], ["683"]),
    ]
    batch = form.pop("batch", "None")
    return serialised(nodes, {"data": [batch, 3, size, size]}, {"683": [1, width]}, weights, **form)


def detector(count: int, shape: Sequence[Any] = (1, 3, "?", "?")) -> bytes:
    """Outputs of SCRFD's shapes for 128 px, all zero but that they read the input."""
    strides = STRIDES[count]
    widths = [width for width in (1, 4, 10) for _ in strides][:count]
    weights: dict[str, Any] = {"nothing": np.zeros(1, np.float32)}
    nodes = [
        h.make_node("ReduceMax", ["input.1"], ["most"], keepdims=0),
        h.make_node("Mul", ["most", "nothing"], ["zero"]),
    ]
    outputs = {}
    for number, width in enumerate(widths):
        cells = (128 // strides[number % len(strides)]) ** 2 * (2 if len(strides) == 3 else 1)
        weights[f"w{number}"] = RNG.uniform(0, 0.4, (cells, width)).astype(np.float32)
        nodes.append(h.make_node("Add", [f"w{number}", "zero"], [str(448 + number)]))
        outputs[str(448 + number)] = [12800, width] if shape[-1] == "?" else [cells, width]
    return serialised(nodes, {"input.1": shape}, outputs, weights)


def swapper(emap: np.ndarray | None = None) -> bytes:
    emap = RNG.normal(size=(6, 6)).astype(np.float32) if emap is None else emap
    nodes = [
        h.make_node("ReduceMean", ["source"], ["one"], keepdims=0),
        h.make_node("Mul", ["target", "one"], ["output"]),
    ]
    shape = [1, 3, 128, 128]
    return serialised(
        nodes, {"target": shape, "source": [1, 6]}, {"output": shape}, {"first": np.ones(2), "emap": emap}
    )


def pack(path: Path, members: Mapping[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def whole() -> dict[str, bytes]:
    """The content of buffalo_l, in small."""
    return {
        "1k3d68.onnx": one_picture(192, 3309),
        "2d106det.onnx": one_picture(192, 212, ["BatchNormalization"], declared=True, ir=3, opset=8),
        "det_10g.onnx": detector(9),
        "genderage.onnx": one_picture(96, 3, ["BatchNormalization"], declared=True, ir=3, opset=8),
        "w600k_r50.onnx": one_picture(112, 16),
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def build(source: Path, folder: Path) -> Bundle:
    assert builder.recognises(source)
    folder.mkdir()
    builder.build(source, folder)
    return Bundle(folder)


# -- a whole pack ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "buffalo_l/", "buffalo_l/buffalo_l/"])
def test_a_pack_becomes_an_encoder_bundle(store: Store, tmp_path: Path, inside: str) -> None:
    members = {inside + name: data for name, data in whole().items()}
    junk = {"__MACOSX/._det_10g.onnx": b"\0\5\x16\7", inside + "README.txt": b"text"}
    bundle = store.add(pack(tmp_path / "buffalo_l.zip", members | junk))
    assert bundle.name == "buffalo_l"
    assert set(bundle.engine_names) == {"encoder", "scrfd", "landmarks_68", "landmarks_106", "gender_age"}
    about = bundle.about
    assert (about["system"], about["licence"]) == ("encoder", "LicenseRef-insightface-non-commercial")
    assert about["commercial"] == "no"
    assert store.of_system("encoder") == ("buffalo_l",)
    assert not [report for report in store.verify() if report.problem]
    assert '"LicenseRef-insightface-non-commercial"' in store.licence_book.read_text()
    for name in bundle.engine_names:
        card = Card.read(bundle.forms(name)["default"])
        assert (card.engine, card.licence, card.system) == (name, about["licence"], "insightface")
        assert card.about
        assert card.source_sha256
        with bundle.open(name, "cpu") as engine:
            assert card.inputs.keys() == card.example_shapes.keys() == {tensor.name for tensor in engine.inputs}


def test_a_folder_and_a_single_file(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "My Models" / "deep"
    folder.mkdir(parents=True)
    for name, data in whole().items():
        (folder / name).write_bytes(data)
    bundle = store.add(folder.parent)
    assert bundle.name == "my-models"
    assert len(bundle.engine_names) == 5
    single = store.add(folder / "w600k_r50.onnx")
    assert (single.name, single.engine_names) == ("w600k_r50", ("encoder",))
    one, other = (Encoder(each, "cpu", 1) for each in (single, bundle))
    assert one.space == other.space
    assert one.space.model == f"w600k_r50-{one.engine.card.source_sha256[:8]}"
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Buffalo L (2).zip", "buffalo-l-2"), ("antelopev2.zip", "antelopev2"), ("中.onnx", "insightface"), (".a", "a")],
)
def test_names_that_the_store_takes(name: str, expected: str) -> None:
    assert bundle_name(Path(name)) == expected


# -- kinds ----------------------------------------------------------------------------------------------------


def raw_reference(data: bytes, pictures: np.ndarray) -> np.ndarray:
    """The published network on floats."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"data": picture[None].transpose(0, 3, 1, 2)})[0] for picture in pictures]
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("first", "scaling"),
    [
        ([], (127.5, 127.5)),
        (["Sub", "Mul"], (0.0, 1.0)),
        (["Identity", "Sub", "Div"], (0.0, 1.0)),
        (["Sub"], (127.5, 127.5)),
        (["Relu", "Sub", "Mul"], (127.5, 127.5)),
        (["BatchNormalization"], (127.5, 127.5)),
    ],
)
@pytest.mark.parametrize("form", [{}, {"declared": True, "ir": 3, "opset": 8}])
def test_arcface_takes_pictures(
    tmp_path: Path, first: list[str], scaling: tuple[float, float], form: dict[str, Any]
) -> None:
    data = one_picture(112, 16, first, **form)
    bundle = build(pack(tmp_path / "a.zip", {"x/R50.onnx": data}), tmp_path / "out")
    constants = bundle.constants["encoder"]
    mean, std = scaling
    assert (constants["mean"], constants["std"], constants["size"]) == (mean, std, 112)
    with bundle.open("encoder", "cpu") as engine:
        found = engine(image=PICTURES)["embedding"]
    np.testing.assert_allclose(
        found, raw_reference(data, (PICTURES.astype(np.float32) - mean) / std), rtol=1e-4, atol=1e-4
    )
    encoder = Encoder(bundle, "cpu", 1)
    assert (encoder.space.width, encoder.space.normalised) == (16, False)
    assert encoder.space.model.startswith("r50-")
    np.testing.assert_array_equal(encoder.vectors(PICTURES), found)
    encoder.close()


def test_a_batch_that_is_fixed_stays_so(tmp_path: Path) -> None:
    data = one_picture(112, 16, batch=1)
    (tmp_path / "r50.onnx").write_bytes(data)
    encoder = Encoder(build(tmp_path / "r50.onnx", tmp_path / "out"), "cpu", 1)
    assert encoder.engine.inputs[0].shape == (1, 112, 112, 3)
    expected = raw_reference(data, (PICTURES.astype(np.float32) - 127.5) / 127.5)
    np.testing.assert_allclose(encoder.vectors(PICTURES), expected, atol=1e-4)
    encoder.close()


@pytest.mark.parametrize(
    ("kind", "size", "width", "first", "scaling"),
    [
        ("landmarks_106", 192, 212, [], (127.5, 128.0)),
        ("landmarks_106", 192, 212, ["BatchNormalization"], (0.0, 1.0)),
        ("landmarks_68", 192, 3309, [], (127.5, 128.0)),
        ("gender_age", 96, 3, ["Sub", "Mul"], (0.0, 1.0)),
    ],
)
def test_networks_beside_the_encoder(
    tmp_path: Path, kind: str, size: int, width: int, first: list[str], scaling: tuple[float, float]
) -> None:
    data = one_picture(size, width, first)
    (tmp_path / "n.onnx").write_bytes(data)
    bundle = build(tmp_path / "n.onnx", tmp_path / "out")
    assert (bundle.about["system"], bundle.engine_names) == ("insightface", (kind,))
    pictures = RNG.integers(0, 256, (2, size, size, 3), np.uint8)
    with bundle.open(kind, "cpu") as engine:
        (found,) = engine(image=pictures).values()
    expected = raw_reference(data, (pictures.astype(np.float32) - scaling[0]) / scaling[1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", STRIDES)
def test_scrfd(tmp_path: Path, count: int) -> None:
    (tmp_path / "det.onnx").write_bytes(detector(count))
    bundle = build(tmp_path / "det.onnx", tmp_path / "out")
    constants = bundle.constants["scrfd"]
    assert constants["points"] is (count in (9, 15))
    assert (tuple(constants["strides"]), constants["size"]) == (STRIDES[count], 640)
    options = scrfd.ScrfdOptions(
        size=128, strides=tuple(constants["strides"]), anchors_per_cell=constants["anchors_per_cell"], min_score=0.35
    )
    blob, scale = scrfd.prepare(PICTURES[0], options)
    with bundle.open("scrfd", "cpu") as engine:
        outputs = engine(image=blob)
    names = [f"{what}_{stride}" for what in ("scores", "boxes", "points") for stride in STRIDES[count]]
    assert list(outputs) == names[:count]
    boxes, points = scrfd.decode(list(outputs.values()), scale, (112, 112), options)
    assert len(boxes)
    assert (points is None) is (count in (6, 10))


def test_scrfd_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "det.onnx").write_bytes(detector(9, (1, 3, 128, 128)))
    bundle = build(tmp_path / "det.onnx", tmp_path / "out")
    assert bundle.constants["scrfd"]["size"] == 128
    with bundle.open("scrfd", "cpu") as engine:
        assert engine.inputs[0].shape == (1, 3, 128, 128)


def test_inswapper_and_its_matrix(tmp_path: Path) -> None:
    emap = RNG.normal(size=(6, 6)).astype(np.float32)
    bundle = build(pack(tmp_path / "inswapper_128.zip", {"inswapper_128.onnx": swapper(emap)}), tmp_path / "out")
    assert (bundle.engine_names, bundle.about["system"]) == (("inswapper",), "insightface")
    assert bundle.constants["inswapper"]["size"] == 128
    np.testing.assert_array_equal(bundle.arrays("inswapper")["emap"], emap)
    target, source = RNG.random((1, 3, 128, 128), np.float32), np.arange(6, dtype=np.float32)[None]
    with bundle.open("inswapper", "cpu") as engine:
        np.testing.assert_allclose(engine(target=target, source=source)["image"], 2.5 * target, rtol=1e-6)
    stored = onnx.load(bundle.forms("inswapper")["default"])
    assert "emap" not in [weight.name for weight in stored.graph.initializer]


def test_a_swapper_without_its_matrix(tmp_path: Path) -> None:
    (tmp_path / "inswapper.onnx").write_bytes(swapper(np.ones((6, 5), np.float32)))
    with pytest.raises(ConversionError, match=r"inswapper\.onnx") as caught:
        build(tmp_path / "inswapper.onnx", tmp_path / "out")
    assert "matrix" in caught.value.cause


# -- packs that are not what they say -------------------------------------------------------------------------


def refused(source: Path, folder: Path) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        build(source, folder)
    assert caught.value.remedy
    assert source.name in caught.value.fact or ".onnx" in caught.value.fact
    return caught.value


def test_unknown_networks_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a/odd.onnx": one_picture(64, 5), "a/r50.onnx": one_picture(112, 16)}
    with caplog.at_level(logging.WARNING, "facesdk"):
        bundle = build(pack(tmp_path / "p.zip", members), tmp_path / "out")
    assert bundle.engine_names == ("encoder",)
    assert "a/odd.onnx" in caplog.text
    assert "r50" not in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        one_picture(64, 5),
        one_picture(192, 100),
        serialised([h.make_node("Relu", ["x"], ["y"])], {"x": [1, 112, 112, 3]}, {"y": [1, 112, 112, 3]}, {}),
        serialised([h.make_node("Relu", ["x"], ["y"])], {"x": [4]}, {"y": [4]}, {}),
    ],
)
def test_a_pack_without_a_known_network(tmp_path: Path, data: bytes) -> None:
    error = refused(pack(tmp_path / "p.zip", {"odd.onnx": data}), tmp_path / "out")
    assert "odd.onnx" in error.cause
    assert "scrfd" in error.remedy


def test_two_encoders_are_one_too_many(tmp_path: Path) -> None:
    members = {"r50.onnx": one_picture(112, 16), "r100.onnx": one_picture(112, 16)}
    error = refused(pack(tmp_path / "p.zip", members), tmp_path / "out")
    assert "r50.onnx and r100.onnx" in error.fact
    assert "facesdk models add r50.onnx" in error.remedy


@pytest.mark.parametrize("data", [b"", b"not a graph", one_picture(112, 16)[:-40]])
def test_damaged_graphs(tmp_path: Path, data: bytes) -> None:
    error = refused(pack(tmp_path / "p.zip", {"r50.onnx": data}), tmp_path / "out")
    assert "r50.onnx" in error.fact


@pytest.mark.parametrize("name", [b"NoSuchOperator", b"NoSuchOperat\xbd\xbd"])
def test_graphs_that_the_checker_refuses(tmp_path: Path, name: bytes) -> None:
    nodes = [h.make_node("NoSuchOperator", ["data"], ["683"])]
    data = serialised(nodes, {"data": [1, 3, 112, 112]}, {"683": [1, 16]}, {}).replace(b"NoSuchOperator", name)
    (tmp_path / "r50.onnx").write_bytes(data)
    assert "r50.onnx" in refused(tmp_path / "r50.onnx", tmp_path / "out").fact


def test_an_operator_set_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "r50.onnx").write_bytes(one_picture(112, 16, opset=6))
    assert "operator set" in refused(tmp_path / "r50.onnx", tmp_path / "out").cause


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 half an archive"])
def test_archives_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "buffalo_l.zip"
    path.write_bytes(content)
    assert "cannot be read" in refused(path, tmp_path / "out").fact


def test_a_cut_archive(tmp_path: Path) -> None:
    path = pack(tmp_path / "p.zip", {"r50.onnx": one_picture(112, 16)})
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[: len(whole_file) // 2])
    refused(path, tmp_path / "out")


def test_a_member_that_was_changed(tmp_path: Path) -> None:
    path = pack(tmp_path / "p.zip", {"r50.onnx": one_picture(112, 16)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    assert "CRC" in refused(path, tmp_path / "out").cause


@pytest.mark.parametrize("name", ["../r50.onnx", "/r50.onnx", "a/../../r50.onnx", "..\\r50.onnx", "C:\\r50.onnx"])
def test_members_that_point_out_of_the_archive(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "p.zip", {name: one_picture(112, 16), "det.onnx": detector(9)})
    error = refused(path, tmp_path / "out")
    assert "out of its folder" in error.fact
    assert list((tmp_path / "out").iterdir()) == []


def test_ten_gigabytes_are_not_unpacked(tmp_path: Path) -> None:
    """By what the directory says: a member that is longer than it states is damaged, and read no further."""
    path = pack(tmp_path / "p.zip", {"r50.onnx": bytes(1000)})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    error = refused(path, tmp_path / "out")
    assert "4.3 GB" in error.fact
    assert "2.1 GB" in error.cause
    data[entry + 24 : entry + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    refused(path, tmp_path / "out2")


def test_a_failed_pack_leaves_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    path = pack(tmp_path / "p.zip", {"r50.onnx": one_picture(112, 16)})
    before = store.add(path).constants
    pack(path, {"r50.onnx": b"damaged"})
    with pytest.raises(ConversionError):
        store.add(path)
    assert store.open("p").constants == before


@pytest.mark.parametrize("name", ["p.task", "p.whl", "p.zip", "folder"])
def test_what_is_left_to_other_builders(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "weights.bin").write_bytes(b"x")
    else:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("weights.bin", b"x")
        path.write_bytes(content.getvalue())
    assert builder.recognises(path) is None
