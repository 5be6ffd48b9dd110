"""The annotation bundles: what is in them, and what damaged sources and damaged bundles say."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.annotation.labels import region_labels
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import (
    BundleError,
    ConversionError,
    EngineUnreadable,
    FaceSDKError,
    IntegrityError,
    MissingDependency,
    ModelNotFound,
)
from facesdk.image import read_image
from facesdk.store import Store
from tests.bundles import DATA, TASK

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from facesdk_engines import annotation  # noqa: E402
from facesdk_engines.pictures import take_pictures  # noqa: E402
from facesdk_engines.writing import write_arrays, write_engine, write_manifest  # noqa: E402

GEOMETRY = "geometry_pipeline_metadata_landmarks.binarypb"
needs_task = pytest.mark.skipif(not TASK.is_file(), reason=f"no task file at {TASK}; set FACESDK_REFERENCE")


# -- what is in them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "name", "engines", "points"),
    [
        ("bundle_478", "annotation-478", {"detector_short", "landmarks", "blendshapes"}, 478),
        ("bundle_468", "annotation", {"detector_short", "detector_full", "landmarks"}, 468),
    ],
)
def test_engines_constants_and_origin(
    fixture: str, name: str, engines: set[str], points: int, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    bundle.verify()
    assert (bundle.name, bundle.about["system"], bundle.about["licence"]) == (name, "annotation", "Apache-2.0")
    assert set(bundle.engine_names) == engines
    with bundle.open("landmarks", "cpu") as engine:
        assert {tensor.name: tensor.shape[-1] for tensor in engine.outputs}["landmarks"] == 3 * points
    assert {path.name for path in bundle.folder.iterdir()} == {*bundle.files, "bundle.toml"}
    for engine in engines:
        for path in bundle.forms(engine).values():
            card = Card.read(path)
            assert (card.system, card.engine) == ("annotation", engine)
            assert card.source_sha256 == bundle.about["source_sha256"]
            assert card.inputs
            assert card.outputs


def test_both_bundles_know_the_same_face(bundle_478: Bundle, bundle_468: Bundle, annotator_478: Annotator) -> None:
    """One reads MediaPipe's metadata, the other finds triangles in edges and takes the face from the recipe.

    Those meshes differ in diagonals, and in triangles over eyes and mouth: the labels painted with them do not.
    """
    task, wheel = bundle_478.arrays("mesh"), bundle_468.arrays("mesh")
    (face,) = annotator_478(read_image(DATA / "astronaut.png")).faces
    maps = [region_labels(face.landmarks, 512, 512, mesh["triangles"]) for mesh in (task, wheel)]
    assert (maps[0] != maps[1]).sum() < 0.001 * (maps[0] > 0).sum()
    for name in ("anchor_index", "anchor_position", "anchor_weight"):
        np.testing.assert_allclose(task[name], wheel[name], rtol=1e-5)


def test_blendshapes_have_their_names(bundle_478: Bundle) -> None:
    names = bundle_478.constants["blendshapes"]["names"]
    assert len(names) == len(set(names)) == 52
    assert names[0] == "_neutral"
    assert bundle_478.arrays("mesh")["blendshape_landmarks"].shape == (146,)


@pytest.mark.parametrize("engine", ["detector_short", "landmarks", "blendshapes"])
def test_the_form_for_processors_computes_the_same(bundle_478: Bundle, engine: str) -> None:
    """The file rewritten for ONNX Runtime's kernels against the published form, on random input."""
    forms, rng = bundle_478.forms(engine), np.random.default_rng(0)
    outputs = []
    for form in ("default", "cpu"):
        with Engine.open(forms[form], "cpu", threads=1) as opened:
            (tensor,) = opened.inputs
            shape = [axis if isinstance(axis, int) else 2 for axis in tensor.shape]
            rng = np.random.default_rng(0)
            values = rng.uniform(0, 255, shape) if tensor.dtype == np.uint8 else rng.normal(100, 20, shape)
            outputs.append(opened(**{tensor.name: values.astype(tensor.dtype)}))
    for name in outputs[0]:
        np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=1e-3, atol=2e-3)


@needs_task
def test_building_twice_gives_the_same_bytes(tmp_path: Path, bundle_478: Bundle) -> None:
    annotation.builder.build(TASK, tmp_path)
    assert Bundle(tmp_path).files == bundle_478.files
    assert (tmp_path / "bundle.toml").read_bytes() == (bundle_478.folder / "bundle.toml").read_bytes()


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        ("face_landmarker.task", "annotation-478"),
        ("mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl", "annotation"),
        ("mediapipe-0.10.9-cp311-cp311-manylinux_2_28_x86_64.whl", None),
        ("model.onnx", None),
    ],
)
def test_sources_are_recognised_by_name(name: str, bundle: str | None) -> None:
    assert annotation.builder.recognises(Path(name)) == bundle


# -- damaged sources ------------------------------------------------------------------------------------------


def rezipped(target: Path, change: Callable[[str, bytes], bytes | None], source: Path = TASK) -> Path:
    """A copy of an archive with changed members; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return target


def only(member: str, data: bytes | None) -> Callable[[str, bytes], bytes | None]:
    return lambda name, old: data if name == member else old


def mesh_with(triangles: bytes) -> bytes:
    """A geometry message of one vertex and one anchor."""
    vertices = b"\x1a\x14" + struct.pack("<5f", 0, 0, 0, 0, 0)
    mesh = vertices + b"\x22" + bytes([len(triangles)]) + triangles
    basis = b"\x08\x00\x15" + struct.pack("<f", 1)
    return b"\x0a" + bytes([len(mesh)]) + mesh + b"\x12" + bytes([len(basis)]) + basis


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"hello" * 1000),
    "truncated": lambda path: path.write_bytes(TASK.read_bytes()[:-1000]),
    "bytes changed": lambda path: path.write_bytes(changed(TASK.read_bytes(), 5000)),
    "a network missing": lambda path: rezipped(path, only("face_blendshapes.tflite", None)),
    "a network empty": lambda path: rezipped(path, only("face_detector.tflite", b"")),
    "a network truncated": lambda path: rezipped(
        path, lambda name, data: data[: len(data) // 2] if name == "face_landmarks_detector.tflite" else data
    ),
    "a network of noise": lambda path: rezipped(path, only("face_detector.tflite", bytes(range(256)) * 8)),
    "geometry missing": lambda path: rezipped(path, only(GEOMETRY, None)),
    "geometry empty": lambda path: rezipped(path, only(GEOMETRY, b"")),
    "geometry of noise": lambda path: rezipped(path, only(GEOMETRY, bytes(range(256)) * 8)),
    "geometry of numbers": lambda path: rezipped(path, only(GEOMETRY, b"\x08\x01\x10\x01")),
    "geometry cut": lambda path: rezipped(path, lambda name, data: data[:-7] if name == GEOMETRY else data),
    "triangle of point 600": lambda path: rezipped(path, only(GEOMETRY, mesh_with(b"\x00\x01\xd8\x04"))),
    "no triangle": lambda path: rezipped(path, only(GEOMETRY, mesh_with(b""))),
    "encrypted": lambda path: path.write_bytes(encrypted(TASK.read_bytes())),
}


def changed(data: bytes, position: int) -> bytes:
    return data[:position] + bytes(byte ^ 0xFF for byte in data[position : position + 64]) + data[position + 64 :]


def encrypted(data: bytes) -> bytes:
    """Every member's flag says that it is."""
    found = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = found.find(signature)
        while position >= 0:
            found[position + offset] |= 1
            position = found.find(signature, position + 4)
    return bytes(found)


@needs_task
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_task_file_says_so_and_leaves_the_store(damage: str, tmp_path: Path, bundle_478: Bundle) -> None:
    store, source = Store(tmp_path / "home"), tmp_path / "mine.task"
    store.add(bundle_478.folder)
    DAMAGES[damage](source)
    with pytest.raises(FaceSDKError) as caught:
        store.add(source)
    assert isinstance(caught.value, ConversionError)
    assert caught.value.remedy
    assert caught.value.cause
    store.open("annotation-478").verify()
    assert [path.name for path in (tmp_path / "home" / "bundles").iterdir()] == ["annotation-478"]


@pytest.mark.parametrize(
    "connections",
    [b"", b"FACEMESH_TESSELATION = 5", b"FACEMESH_TESSELATION = frozenset([(1, 2, 3)])", b"def (", b"\0", b"\xff\xfe",
     b"FACEMESH_TESSELATION = frozenset(open('/etc/passwd'))", b"FACEMESH_TESSELATION = frozenset([(1, 2)])",
     b"FACEMESH_TESSELATION = frozenset([(0, 1), (1, 999), (999, 0)])"],
)  # fmt: skip
def test_damaged_connections_of_the_wheel(connections: bytes, tmp_path: Path) -> None:
    """The file is parsed, never run."""
    path = tmp_path / "mediapipe.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("connections.py", connections)
    kind = {"connections": "connections.py"}
    with pytest.raises(ConversionError) as caught:
        annotation._wheel_geometry(annotation._Archive(path), annotation._recipe(), kind)
    assert "mediapipe.whl" in caught.value.fact


@needs_task
def test_a_file_of_the_catalogs_name_must_have_its_hash(tmp_path: Path, models_home: Path) -> None:
    pinned = {model.source.file for model in Store(models_home).models.values()}
    source = tmp_path / next(iter(pinned))
    source.write_bytes(b"something else")
    with pytest.raises(IntegrityError) as caught:
        Store(tmp_path / "home").add(source)
    assert caught.value.code == "integrity"
    assert "sha256 expected" in caught.value.cause
    assert source.read_bytes() == b"something else"


@needs_task
def test_converting_needs_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a))
    with pytest.raises(MissingDependency) as caught:
        annotation.builder.build(TASK, tmp_path)
    assert "pip install" in caught.value.remedy
    assert "onnx" in caught.value.remedy
    assert not list(tmp_path.iterdir())


# -- damaged bundles ------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, bundle_478: Bundle) -> Path:
    """A copy of the bundle to damage."""
    return Path(shutil.copytree(bundle_478.folder, tmp_path / "bundle"))


@pytest.mark.parametrize("name", ["landmarks.cpu.onnx", "mesh.npz", "detector_short.onnx"])
def test_a_wrong_hash_names_the_file(own: Path, name: str) -> None:
    path = own / name
    path.write_bytes(changed(path.read_bytes(), 300))
    with pytest.raises(IntegrityError, match=name) as caught:
        Bundle(own).verify()
    assert caught.value.code == "integrity"
    assert "--force" in caught.value.remedy


@pytest.mark.parametrize("name", ["landmarks.cpu.onnx", "detector_short.cpu.onnx", "blendshapes.cpu.onnx"])
@pytest.mark.parametrize("content", [b"", b"no graph", "half"])
def test_a_corrupt_engine(own: Path, name: str, content: bytes | str) -> None:
    path = own / name
    data = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else data[: len(data) // 2])
    before = path.read_bytes()
    with pytest.raises(EngineUnreadable) as caught:
        Annotator(Bundle(own), "cpu", threads=1)
    assert name in caught.value.fact
    assert caught.value.remedy
    assert path.read_bytes() == before


def test_a_missing_engine(own: Path) -> None:
    (own / "landmarks.onnx").unlink()
    with pytest.raises(ModelNotFound, match=r"landmarks\.onnx"):
        Annotator(Bundle(own), "cpu", threads=1)


def test_missing_arrays(own: Path) -> None:
    (own / "mesh.npz").unlink()
    with pytest.raises(BundleError, match=r"mesh\.npz"):
        Annotator(Bundle(own), "cpu", threads=1)


def test_a_bundle_of_another_system(tmp_path: Path) -> None:
    (tmp_path / "bundle.toml").write_text('[bundle]\nname = "swap"\nsystem = "swap"\nlicence = "MIT"\n')
    with pytest.raises(BundleError, match="swap is not an annotation bundle") as caught:
        Annotator(Bundle(tmp_path), "cpu", threads=1)
    assert "detector_short" in caught.value.cause


# -- making engines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "offset"), [(1 / 127.5, -1.0), (1 / 255, 0.0), (1.0, 0.0), (1.0, 3.0), (2.0, -4.0)])
@pytest.mark.parametrize("batch", [1, "n"])
def test_a_network_made_to_take_pictures(
    save_graph: Callable[..., Path], tmp_path: Path, scale: float, offset: float, batch: int | str
) -> None:
    """Uint8 NHWC in; the network sees scaled NCHW floats."""
    shape = [batch, 3, 4, 4]
    source = save_graph([("Identity", ["image"], ["seen"])], {"image": shape}, {"seen": shape})
    model = onnx.load(source)
    take_pictures(model, 4, scale, offset)
    card = dataclasses.replace(Card.read(source), system="test", engine="identity")
    path = tmp_path / "pictures.onnx"
    write_engine(path, model, card)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1 if batch == 1 else 3, 4, 4, 3), np.uint8)
    with Engine.open(path, "cpu", threads=1) as engine:
        assert engine.inputs[0].dtype == np.uint8
        assert engine.card.engine == "identity"
        seen = engine(image=pictures)["seen"]
    np.testing.assert_allclose(seen, pictures.transpose(0, 3, 1, 2).astype(np.float32) * scale + offset, rtol=1e-5)


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    about = {"name": "test", "system": "test", "licence": 'of "quotes"\\ and\nlines', "odd key": "ä 😀 \x07"}
    constants = {"one": {"list": [1, 2.5, [3, -4e-30]], "yes": True, "text": "x = 'y' # z"}}
    write_arrays(tmp_path / "table.npz", values=np.arange(5))
    write_manifest(tmp_path, about, {"net": {"default": "table.npz"}}, constants)
    bundle = Bundle(tmp_path)
    assert bundle.about == about
    assert bundle.constants == constants
    assert bundle.engine_names == ("net",)
    bundle.verify()
    np.testing.assert_array_equal(bundle.arrays("table")["values"], np.arange(5))


def test_an_invalid_graph_is_not_written(save_graph: Callable[..., Path], tmp_path: Path) -> None:
    source = save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    model, card = onnx.load(source), Card.read(source)
    model.graph.node[0].input[0] = "nowhere"
    path = tmp_path / "out" / "bad.onnx"
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(onnx.checker.ValidationError):
        write_engine(path, model, card)
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_damaged_arrays(bundle_478: Bundle, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(bundle_478.folder, tmp_path / "copy")
    (tmp_path / "copy" / "mesh.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"mesh\.npz"):
        Bundle(tmp_path / "copy").arrays("mesh")


def test_regions_go_in_one_batch_on_cuda(annotator_478: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results as one by one, and none for no region; only the engine's name says CUDA here."""
    picture = read_image(DATA / "astronaut.png")
    region = annotator_478(picture).faces[0].region
    regions = [region, region.scaled(1.1)]
    single = annotator_478.mesh.landmarks(picture, regions)
    monkeypatch.setattr(annotator_478.mesh._engine, "device", "cuda")
    assert annotator_478.mesh.landmarks(picture, []) == []
    for (points, presence), (wanted, certainty) in zip(
        annotator_478.mesh.landmarks(picture, regions), single, strict=True
    ):
        assert np.allclose(points, wanted, atol=1e-3)
        assert presence == pytest.approx(certainty, abs=1e-5)
